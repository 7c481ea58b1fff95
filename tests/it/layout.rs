//! How queues' tables are laid out, and how that is changed while they are used.

use pgmq_grpc::proto::v1::{
    CreateQueueRequest, GetQueueRequest, ListQueuesRequest, Queue, QueueKind, QueueLayout,
    SetQueueLayoutRequest,
};
use tonic::{Code, Status};

use crate::harness::{Client, Refusal, Server, Test};

pub(crate) async fn create(
    client: &mut Client,
    queue: &str,
    kind: QueueKind,
    layout: QueueLayout,
) -> (Queue, bool) {
    let request = CreateQueueRequest {
        queue: queue.to_owned(),
        kind: kind.into(),
        layout: layout.into(),
        ..Default::default()
    };
    let created = client.queue.create_queue(request).await.unwrap().into_inner();
    (created.queue.unwrap(), created.created)
}

pub(crate) async fn layout_of(client: &mut Client, queue: &str) -> QueueLayout {
    let request = GetQueueRequest { queue: queue.to_owned() };
    client.queue.get_queue(request).await.unwrap().into_inner().queue.unwrap().layout()
}

pub(crate) async fn set(
    client: &mut Client,
    queue: &str,
    layout: QueueLayout,
) -> Result<QueueLayout, Status> {
    let request = SetQueueLayoutRequest { queue: queue.to_owned(), layout: layout.into() };
    Ok(client.admin.set_queue_layout(request).await?.into_inner().queue.unwrap().layout())
}

/// What of a table makes its layout: its settings, and the columns of its indexes.
pub(crate) async fn shape(test: &Test, table: &str) -> String {
    test.value(&format!(
        "SELECT coalesce(array_to_string(c.reloptions, ' '), '') || ' | ' || coalesce((SELECT string_agg(
           pg_get_indexdef(i.indexrelid, 0, false), '; ' ORDER BY i.indexrelid::regclass::text)
           FROM pg_index AS i WHERE i.indrelid = c.oid), '') FROM pg_class AS c WHERE c.oid = '{table}'::regclass"
    ))
    .await
}

#[tokio::test]
async fn a_queue_is_tuned_unless_asked_otherwise() {
    let mut test = Test::start_with(&["--queue-layout", "tuned"]).await;
    for (queue, kind) in [("a", QueueKind::Standard), ("b", QueueKind::Unlogged)] {
        let (made, created) = create(&mut test.client, queue, kind, QueueLayout::Unspecified).await;
        assert_eq!((made.layout(), created), (QueueLayout::Tuned, true));
        let shape = shape(&test, &format!("pgmq.q_{queue}")).await;
        assert!(shape.contains("fillfactor=50 autovacuum_vacuum_scale_factor=0.01"), "{shape}");
        assert!(!shape.contains("(vt)"), "{shape}");
        assert_eq!(layout_of(&mut test.client, queue).await, QueueLayout::Tuned);
    }
    let listed = test.client.queue.list_queues(ListQueuesRequest::default()).await.unwrap().into_inner();
    assert!(listed.queues.iter().all(|queue| queue.layout() == QueueLayout::Tuned));
}

#[tokio::test]
async fn pgmqs_layout_is_exactly_pgmqs() {
    let mut test = Test::start_with(&["--queue-layout", "tuned"]).await;
    test.run("SELECT pgmq.create('plain')").await;
    let (made, _) = create(&mut test.client, "asked", QueueKind::Standard, QueueLayout::Pgmq).await;
    assert_eq!(made.layout(), QueueLayout::Pgmq);
    assert_eq!(layout_of(&mut test.client, "plain").await, QueueLayout::Pgmq);
    let plain = shape(&test, "pgmq.q_plain").await;
    assert_eq!(shape(&test, "pgmq.q_asked").await, plain.replace("plain", "asked"));

    let other = Server::start_on(&test.database, &["--queue-layout", "pgmq"]).await;
    let mut elsewhere = Client::connect(&other).await;
    let (made, _) = create(&mut elsewhere, "default", QueueKind::Standard, QueueLayout::Unspecified).await;
    assert_eq!(made.layout(), QueueLayout::Pgmq);
}

#[tokio::test]
async fn an_existing_queue_keeps_its_layout_when_it_is_created_again() {
    let mut test = Test::start().await;
    create(&mut test.client, "a", QueueKind::Standard, QueueLayout::Pgmq).await;
    let (again, created) = create(&mut test.client, "a", QueueKind::Standard, QueueLayout::Tuned).await;
    assert_eq!((again.layout(), created), (QueueLayout::Pgmq, false));
}

#[tokio::test]
async fn a_queue_changes_its_layout_and_back_and_keeps_its_messages() {
    let mut test = Test::start().await;
    for (queue, kind) in [("a", QueueKind::Standard), ("mixed-b", QueueKind::Unlogged)] {
        let table = format!("pgmq.\"q_{queue}\"");
        create(&mut test.client, queue, kind, QueueLayout::Pgmq).await;
        let as_made = shape(&test, &table).await;
        let sent = test.client.send_all(queue, &["1", "2", "3"]).await;
        let held = test.client.read_one(queue).await;

        for _ in 0..2 {
            let tuned = set(&mut test.client, queue, QueueLayout::Tuned).await.unwrap();
            assert_eq!(tuned, QueueLayout::Tuned);
        }
        assert_eq!(test.client.read_one(queue).await.msg_id, sent[1]);
        for _ in 0..2 {
            assert_eq!(set(&mut test.client, queue, QueueLayout::Pgmq).await.unwrap(), QueueLayout::Pgmq);
        }
        assert_eq!(shape(&test, &table).await, as_made);
        assert_eq!(test.client.read_one(queue).await.msg_id, sent[2]);
        let settled = test.client.delete(queue, &[&held.receipt]).await;
        assert_eq!(settled, [pgmq_grpc::proto::v1::Outcome::Done]);
    }
}

#[tokio::test]
async fn a_table_in_use_is_busy_and_stays_as_it_was() {
    let mut test = Test::start().await;
    create(&mut test.client, "a", QueueKind::Standard, QueueLayout::Pgmq).await;
    let before = shape(&test, "pgmq.q_a").await;
    let holder = test.database.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE pgmq.q_a IN ROW EXCLUSIVE MODE").await.unwrap();

    let status = set(&mut test.client, "a", QueueLayout::Tuned).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
    assert_eq!(refusal.metadata["queue"], "a");
    assert_eq!(shape(&test, "pgmq.q_a").await, before);

    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(set(&mut test.client, "a", QueueLayout::Tuned).await.unwrap(), QueueLayout::Tuned);
}

/// Makes who builds an index wait for a short time where it would wait for a minute.
async fn shorten_the_wait_for_an_index(test: &Test) {
    test.run(
        "CREATE FUNCTION public.hurry() RETURNS event_trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM set_config('lock_timeout', '100ms', false); END $$;
         CREATE EVENT TRIGGER hurry ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
           EXECUTE FUNCTION public.hurry()",
    )
    .await;
}

#[tokio::test]
async fn an_index_that_waits_for_others_in_vain_is_busy_and_says_what_is_left_of_it() {
    let cases = [
        // An older transaction that may see the table, and one that uses it, which keeps the index from being dropped too.
        ("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pgmq.meta", "nothing was applied", 0),
        ("BEGIN; LOCK TABLE pgmq.q_a IN ROW EXCLUSIVE MODE", "the next call removes", 1),
    ];
    for (hold, told, left) in cases {
        let mut test = Test::start().await;
        create(&mut test.client, "a", QueueKind::Standard, QueueLayout::Tuned).await;
        shorten_the_wait_for_an_index(&test).await;
        let holder = test.database.connect().await;
        holder.batch_execute(hold).await.unwrap();

        let status = set(&mut test.client, "a", QueueLayout::Pgmq).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
        assert_eq!(refusal.metadata["queue"], "a");
        assert!(refusal.message.contains("within 60 s") && refusal.message.contains(told), "{refusal:?}");
        let unfinished =
            "SELECT count(*) FROM pg_index WHERE indrelid = 'pgmq.q_a'::regclass AND NOT indisvalid";
        assert_eq!(test.value::<i64>(unfinished).await, left, "{hold}");
        assert_eq!(layout_of(&mut test.client, "a").await, QueueLayout::Tuned);

        holder.batch_execute("COMMIT").await.unwrap();
        assert_eq!(set(&mut test.client, "a", QueueLayout::Pgmq).await.unwrap(), QueueLayout::Pgmq);
        assert_eq!(test.value::<i64>(unfinished).await, 0);
    }
}

#[tokio::test]
async fn an_index_left_half_built_is_built_anew() {
    let mut test = Test::start().await;
    create(&mut test.client, "a", QueueKind::Standard, QueueLayout::Tuned).await;
    test.run(
        "CREATE INDEX q_a_vt_idx ON pgmq.q_a (vt);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgmq.q_a_vt_idx'::regclass",
    )
    .await;
    assert_eq!(layout_of(&mut test.client, "a").await, QueueLayout::Tuned);

    assert_eq!(set(&mut test.client, "a", QueueLayout::Pgmq).await.unwrap(), QueueLayout::Pgmq);
    let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'pgmq.q_a_vt_idx'::regclass";
    assert!(test.value::<bool>(valid).await);
}

#[tokio::test]
async fn a_way_back_to_pgmqs_layout_that_ended_half_way_is_gone_to_its_end() {
    let mut test = Test::start().await;
    create(&mut test.client, "whole", QueueKind::Standard, QueueLayout::Pgmq).await;
    create(&mut test.client, "half", QueueKind::Standard, QueueLayout::Tuned).await;
    // The index is there, and the table's settings are not taken back yet.
    test.run("CREATE INDEX q_half_vt_idx ON pgmq.q_half (vt)").await;
    assert_eq!(set(&mut test.client, "half", QueueLayout::Pgmq).await.unwrap(), QueueLayout::Pgmq);
    let whole = shape(&test, "pgmq.q_whole").await;
    assert_eq!(shape(&test, "pgmq.q_half").await, whole.replace("whole", "half"));
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let mut test = Test::with_queue("a").await;
    let status = set(&mut test.client, "nowhere", QueueLayout::Tuned).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    let status = set(&mut test.client, "a", QueueLayout::Unspecified).await.unwrap_err();
    assert_eq!(Refusal::expect(&status, Code::InvalidArgument, "MISSING_FIELD").fields, ["layout"]);
    let request = SetQueueLayoutRequest { queue: String::new(), layout: 17 };
    let status = test.client.admin.set_queue_layout(request).await.unwrap_err();
    Refusal::expect(&status, Code::InvalidArgument, "MISSING_FIELD");
    let request = SetQueueLayoutRequest { queue: "a".to_owned(), layout: 17 };
    let status = test.client.admin.set_queue_layout(request).await.unwrap_err();
    assert_eq!(Refusal::expect(&status, Code::InvalidArgument, "INVALID_ENUM").fields, ["layout"]);
}

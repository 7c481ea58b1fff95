//! What `GetServerInfo` shows of a server's load.

use pgmq_grpc::proto::v1::{
    DeleteRequest, GetQueueRequest, GetServerInfoRequest, ReadRequest, SendRequest, ServerState, WatchRequest,
};

use crate::consume::{Consumer, start};
use crate::harness::{Client, Test, eventually};
use crate::transaction::Open;

async fn state(client: &Client) -> ServerState {
    let info = client.clone().queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    info.state.expect("a state")
}

/// Waits until a server shows this.
pub(crate) async fn eventually_shows(
    client: &Client,
    what: &str,
    shows: impl Fn(&ServerState) -> bool,
) -> ServerState {
    eventually(what, async || Some(state(client).await).filter(|state| shows(state))).await
}

#[tokio::test]
async fn open_streams_and_transactions_are_counted_while_they_are_open() {
    let test = Test::with_queue("orders").await;
    let client = &test.client;
    let idle = state(client).await;
    assert!(idle.uptime.is_some_and(|uptime| uptime.seconds > 0 || uptime.nanos > 0));
    assert_eq!(idle.max_database_connections, 8);
    assert!((1..=8).contains(&idle.open_database_connections), "{idle:?}");
    assert_eq!((idle.waiting_sends, idle.waiting_send_bytes, idle.waiting_settles), (0, 0, 0));
    assert_eq!((idle.read_streams, idle.consume_streams, idle.produce_streams), (0, 0, 0));
    assert_eq!((idle.watch_streams, idle.open_transactions, idle.dispatchers), (0, 0, 0));
    assert_eq!((idle.lanes, idle.refusing_lanes, idle.merged_calls), (0, 0, 0));
    assert!(!idle.merged_calls_refused);

    let mut reads = Vec::new();
    for _ in 0..3 {
        let request = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
        let mut read = client.clone().queue.read(request).await.unwrap().into_inner();
        assert!(read.message().await.unwrap().expect("a first reply").started.is_some());
        reads.push(read);
    }
    let (consumer, _) = Consumer::start_and_tell(client, start("orders")).await;
    let produce = crate::produce::Stream::open(client).await;
    let watched = WatchRequest { queues: vec!["orders".to_owned()], ..Default::default() };
    let watch = client.clone().queue.watch(watched).await.unwrap().into_inner();
    let transaction = Open::begin(client).await;

    let busy = state(client).await;
    assert_eq!((busy.read_streams, busy.consume_streams, busy.produce_streams), (3, 1, 1));
    assert_eq!((busy.watch_streams, busy.open_transactions), (1, 1));
    // All of them read in the same way.
    assert_eq!(busy.dispatchers, 1);
    assert!((1..=8).contains(&busy.used_database_connections), "{busy:?}");

    drop((reads, consumer, produce, watch, transaction));
    eventually_shows(client, "an idle server", |state| {
        let streams =
            state.read_streams + state.consume_streams + state.produce_streams + state.watch_streams;
        streams + state.open_transactions + state.dispatchers == 0
    })
    .await;
}

/// Makes one more call whenever it looks, until a server shows this: those that come while a flush waits for a lock wait for the
/// next one. Returns what it has shown, and the calls.
async fn calling_until_it_shows<C: Future<Output = ()> + Send + 'static>(
    client: &Client,
    what: &str,
    call: impl Fn(Client) -> C,
    shows: impl Fn(&ServerState) -> bool,
) -> (ServerState, Vec<tokio::task::JoinHandle<()>>) {
    let mut calls = Vec::new();
    let shown = eventually(what, async || {
        calls.push(tokio::spawn(call(client.clone())));
        Some(state(client).await).filter(|state| shows(state))
    })
    .await;
    (shown, calls)
}

#[tokio::test]
async fn what_waits_behind_a_lock_is_counted_until_it_is_done() {
    let test = Test::with_queue("orders").await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let send = |mut client: Client| async move {
        let (queue, message) = ("orders".to_owned(), "12345".to_owned());
        // The lock's time may be up before it is free.
        let _ = client.queue.send(SendRequest { queue, message, ..Default::default() }).await;
    };
    let (busy, calls) =
        calling_until_it_shows(&test.client, "waiting sends", send, |state| state.waiting_sends > 0).await;
    assert!(busy.waiting_send_bytes >= 5 * i64::from(busy.waiting_sends), "{busy:?}");
    assert!(busy.lanes == 1 && busy.merged_calls > 0, "{busy:?}");

    test.run("ROLLBACK").await;
    for call in calls {
        call.await.unwrap();
    }
    eventually_shows(&test.client, "nothing that waits", |state| {
        state.waiting_sends + state.waiting_settles + state.lanes + state.merged_calls == 0
            && state.waiting_send_bytes == 0
    })
    .await;
}

#[tokio::test]
async fn settles_that_wait_behind_a_lock_are_counted_until_they_are_done() {
    let test = Test::with_queue("orders").await;
    test.run("BEGIN; LOCK TABLE pgmq.q_orders").await;
    let delete = |mut client: Client| async move {
        let request = DeleteRequest { queue: "orders".to_owned(), msg_ids: vec![1], ..Default::default() };
        let _ = client.queue.delete(request).await;
    };
    let (busy, calls) =
        calling_until_it_shows(&test.client, "waiting settles", delete, |state| state.waiting_settles > 0)
            .await;
    assert!(busy.merged_calls > 0 && busy.lanes == 1, "{busy:?}");
    assert_eq!((busy.waiting_sends, busy.waiting_send_bytes), (0, 0));

    test.run("ROLLBACK").await;
    for call in calls {
        call.await.unwrap();
    }
    eventually_shows(&test.client, "nothing that waits", |state| {
        state.waiting_settles + state.lanes + state.merged_calls == 0
    })
    .await;
}

#[tokio::test]
async fn calls_that_wait_for_a_connection_are_counted() {
    let mut test = Test::start_with(&["--pool-size", "1", "--transaction-idle-timeout", "30s"]).await;
    test.client.create("orders").await;
    let transaction = Open::begin(&test.client).await;
    let mut client = test.client.clone();
    let waiting = tokio::spawn(async move {
        client.queue.get_queue(GetQueueRequest { queue: "orders".to_owned() }).await.map(drop)
    });
    let busy = eventually_shows(&test.client, "a waiting call", |state| state.calls_waiting_for_database > 0);
    let busy = busy.await;
    assert_eq!((busy.max_database_connections, busy.used_database_connections), (1, 1));
    assert_eq!((busy.open_database_connections, busy.open_transactions), (1, 1));
    drop(transaction);
    // It has its turn, unless it has waited for too long on a slow machine.
    let _ = waiting.await.unwrap();
    eventually_shows(&test.client, "no waiting call", |state| state.calls_waiting_for_database == 0).await;
}

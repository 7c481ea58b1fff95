//! Every way in which a transaction ends, and what is left of it.

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::OpenTransactionRequest;
use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::{CreateQueueRequest, QueueKind};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::{Open, begin, commit, count, open_transactions, read, rollback, send};
use crate::harness::{Gate, Refusal, Test, eventually, health};

/// A transaction with a send and a read in it.
async fn at_work() -> (Test, Open) {
    let mut test = Test::with_queue("orders").await;
    test.client.create("results").await;
    // One that the transaction has not touched, so that it can still be altered.
    test.client.create("guarded").await;
    test.client.send("orders", "1").await;
    let mut open = Open::begin(&test.client).await;
    open.done(send("results", "2")).await;
    open.read_one("orders").await;
    assert!(test.client.read("orders", 1).await.is_empty());
    (test, open)
}

/// Checks that nothing of it was applied, what was read is there, and the server goes on.
async fn nothing_is_left_of_it(test: &mut Test) {
    eventually("no open transaction", async || (open_transactions(test).await == 0).then_some(())).await;
    assert_eq!((count(test, "results").await, count(test, "guarded").await), (0, 0));
    let again = test.client.read_one("orders").await;
    assert_eq!(again.read_ct, 1);
    Open::begin(&test.client).await.commit().await;
}

#[tokio::test]
async fn a_rollback_undoes_everything() {
    let (mut test, mut open) = at_work().await;
    assert!(matches!(open.done(rollback()).await, Reply::RolledBack(_)));
    assert!(open.next().await.is_none());
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn the_end_of_the_commands_without_a_commit_rolls_back() {
    let (mut test, open) = at_work().await;
    let Open { commands, mut replies } = open;
    drop(commands);
    assert!(replies.message().await.unwrap().is_none());
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn a_client_that_goes_away_rolls_back() {
    let (mut test, open) = at_work().await;
    drop(open);
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn a_client_that_goes_away_during_a_statement_rolls_back() {
    let (mut test, mut open) = at_work().await;
    let gate = Gate::close(&test, "guarded", "INSERT").await;
    open.give(send("guarded", "3")).await;
    gate.arrival(&test, "send").await;
    drop(open);
    // The statement still waits at its gate, and ends because nobody listens any more.
    eventually("no open transaction", async || (open_transactions(&test).await == 0).then_some(())).await;
    gate.open(&test).await;
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn a_command_that_fails_ends_the_transaction() {
    let (mut test, mut open) = at_work().await;
    open.give(send("missing", "{}")).await;
    open.give(commit()).await;
    let refused = open.failure().await;
    let refusal = Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal.metadata["queue"], "missing");
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn a_command_that_is_refused_names_its_field() {
    let (mut test, open) = at_work().await;
    let refused = open.refused(send("orders", "{oops}")).await;
    Refusal::expect_invalid(&refused, "INVALID_JSON", "send.message");
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn a_failure_of_the_database_ends_the_transaction() {
    let (mut test, open) = at_work().await;
    test.run("ALTER TABLE pgmq.q_guarded ADD CHECK (message <> '3') NOT VALID").await;
    let refused = open.refused(send("guarded", "3")).await;
    Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn a_constraint_that_fails_at_the_commit_leaves_nothing() {
    let (mut test, mut open) = at_work().await;
    test.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON pgmq.q_guarded DEFERRABLE
           FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    open.done(send("guarded", "3")).await;
    let refused = open.refused(commit()).await;
    let refusal = Refusal::expect(&refused, Code::Aborted, "TRANSACTION_FAILED");
    assert!(refusal.message.contains("nothing was applied"), "{}", refusal.message);
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn commands_out_of_place_end_the_stream() {
    let test = Test::with_queue("orders").await;
    for first in [send("orders", "{}"), commit(), rollback()] {
        let refused = Open::stream(&test.client).await.refused(first).await;
        Refusal::expect(&refused, Code::InvalidArgument, "STREAM_PROTOCOL");
    }
    let mut open = Open::begin(&test.client).await;
    open.done(send("orders", "{}")).await;
    let refused = open.refused(begin()).await;
    Refusal::expect(&refused, Code::InvalidArgument, "STREAM_PROTOCOL");

    let (commands, received) = tokio::sync::mpsc::channel(1);
    commands.send(OpenTransactionRequest { command: None }).await.unwrap();
    let mut client = test.client.transaction.clone();
    let mut replies = client.open_transaction(ReceiverStream::new(received)).await.unwrap().into_inner();
    let refused = replies.message().await.unwrap_err();
    Refusal::expect_invalid(&refused, "MISSING_FIELD", "command");
    assert_eq!(count(&test, "orders").await, 0);
}

#[tokio::test]
async fn a_stream_of_nothing_ends_in_order() {
    let test = Test::start().await;
    let Open { commands, mut replies } = Open::stream(&test.client).await;
    drop(commands);
    assert!(replies.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_connection_that_is_lost_between_commands_has_applied_nothing() {
    let (mut test, open) = at_work().await;
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction'";
    assert_eq!(test.value::<i64>(cut).await, 1);
    let refused = open.refused(send("orders", "{}")).await;
    let refusal = Refusal::expect(&refused, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert!(refusal.message.contains("nothing was applied"), "{}", refusal.message);
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn a_connection_that_is_lost_during_a_command_has_applied_nothing() {
    let (mut test, mut open) = at_work().await;
    let gate = Gate::close(&test, "guarded", "INSERT").await;
    open.give(send("guarded", "3")).await;
    let pid = gate.arrival(&test, "send").await;
    gate.terminate(&test, pid).await;
    let refused = open.failure().await;
    let refusal = Refusal::expect(&refused, Code::Unavailable, "DATABASE_UNAVAILABLE");
    assert!(refusal.message.contains("nothing was applied"), "{}", refusal.message);
    gate.open(&test).await;
    nothing_is_left_of_it(&mut test).await;
}

/// A transaction whose commit waits at a gate, and the process that runs it.
async fn waiting_commit(test: &Test) -> (Open, i32) {
    test.run(
        "CREATE TABLE gate (is_open boolean);
         CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON pgmq.q_orders DEFERRABLE
           FOR EACH ROW EXECUTE FUNCTION wait_at_gate()",
    )
    .await;
    let mut open = Open::begin(&test.client).await;
    open.done(send("orders", "{}")).await;
    open.give(commit()).await;
    let running = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
        AND query LIKE '%COMMIT%' AND pid <> pg_backend_pid()";
    let pid = eventually("a commit that runs", async || {
        test.sql.query_opt(running, &[]).await.unwrap().map(|row| row.get(0))
    })
    .await;
    (open, pid)
}

#[tokio::test]
async fn the_outcome_of_a_commit_that_is_cut_off_is_unknown() {
    let test = Test::with_queue("orders").await;
    let (open, pid) = waiting_commit(&test).await;
    test.sql.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let refused = open.failure().await;
    Refusal::expect(&refused, Code::Unknown, "OUTCOME_UNKNOWN");
}

#[tokio::test]
async fn a_commit_that_runs_ends_whoever_waits_for_it() {
    let test = Test::with_queue("orders").await;
    let (open, _) = waiting_commit(&test).await;
    drop(open);
    test.run("INSERT INTO gate VALUES (true)").await;
    eventually("the commit", async || (count(&test, "orders").await == 1).then_some(())).await;
}

#[tokio::test]
async fn a_drain_ends_open_transactions() {
    let (test, open) = at_work().await;
    test.server.signal(Signal::SIGTERM);
    let refused = open.failure().await;
    Refusal::expect(&refused, Code::Unavailable, "DRAINING");
    let Test { server, sql, .. } = test;
    let (status, log) = server.exit().await;
    assert!(status.success(), "{log}");
    let left: i64 = sql.query_one("SELECT count(*) FROM pgmq.q_results", &[]).await.unwrap().get(0);
    let read: i64 =
        sql.query_one("SELECT count(*) FROM pgmq.q_orders WHERE read_ct > 0", &[]).await.unwrap().get(0);
    assert_eq!((left, read), (0, 0));
}

#[tokio::test]
async fn a_drain_waits_for_a_commit_that_runs() {
    let test = Test::with_queue("orders").await;
    let (mut open, _) = waiting_commit(&test).await;
    test.server.signal(Signal::SIGTERM);
    eventually("the drain", async || test.server.log().contains("draining").then_some(())).await;
    test.run("INSERT INTO gate VALUES (true)").await;
    assert!(matches!(open.next().await.unwrap(), Ok(Reply::Committed(_))));
    let (status, log) = test.server.exit().await;
    assert!(status.success(), "{log}");
}

#[tokio::test]
async fn a_deadline_of_the_client_ends_the_transaction() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("results").await;
    test.client.create("guarded").await;
    test.client.send("orders", "1").await;
    let (commands, received) = tokio::sync::mpsc::channel(10);
    let mut request = Request::new(ReceiverStream::new(received));
    // tonic's own client would end the stream at the same moment; a mesh sends the header alone.
    request.metadata_mut().insert("grpc-timeout", "900m".parse().unwrap());
    let replies = test.client.transaction.clone().open_transaction(request).await.unwrap().into_inner();
    let mut open = Open { commands, replies };
    open.give(begin()).await;
    open.give(send("results", "2")).await;
    open.give(read("orders")).await;
    let status: Status = loop {
        if let Err(status) = open.next().await.expect("an error before the end") {
            break status;
        }
    };
    Refusal::expect(&status, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    nothing_is_left_of_it(&mut test).await;
}

#[tokio::test]
async fn the_service_has_a_health_of_its_own() {
    let test = Test::start().await;
    health::serving(&test.client).await;
    let status = health::check(&test.client.channel, "pgmq.v1.TransactionService").await.unwrap();
    assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving);
}

#[tokio::test]
async fn a_queue_that_was_remade_in_a_transaction_is_known_anew() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    let mut open = Open::begin(&test.client).await;
    let queue = || "orders".to_owned();
    open.done(Command::DropQueue(pgmq_grpc::proto::v1::DropQueueRequest { queue: queue() })).await;
    let kind = QueueKind::Unlogged.into();
    open.done(Command::CreateQueue(CreateQueueRequest { queue: queue(), kind, ..Default::default() })).await;
    open.commit().await;
    assert_eq!(test.client.send("orders", "2").await, 1);
    assert_eq!(test.client.read_one("orders").await.message, "2");
}

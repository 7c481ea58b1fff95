//! Connections that are old: they take no new calls, and no call suffers from it.
//!
//! The client here is hyper's, which sends what an old connection did not take over a new one, as gRPC's own clients do.
//! tonic's leaves that to its caller.

use std::collections::HashSet;

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{ListClientsRequest, SendRequest};

use crate::harness::wire::patient;
use crate::harness::{Test, eventually};
use crate::read_batch::waiting_for;

async fn with_queues() -> Test {
    let test = Test::of_short_lives("orders", &[]).await;
    test.run("SELECT pgmq.create('bills')").await;
    test
}

fn send(queue: &str) -> SendRequest {
    SendRequest { queue: queue.to_owned(), message: "{}".to_owned(), ..Default::default() }
}

/// From where the server was called in the last minute.
async fn addresses(test: &Test) -> HashSet<String> {
    let listed = test.fresh_client().await.admin.list_clients(ListClientsRequest::default()).await.unwrap();
    listed.into_inner().clients.into_iter().map(|client| client.address).collect()
}

#[tokio::test]
async fn a_client_goes_on_over_new_connections_and_no_call_fails() {
    let test = with_queues().await;
    let mut client = patient(&test.server);
    let mut waiter = client.clone();
    let waiting = tokio::spawn(async move { waiter.read_batch(waiting_for("bills")).await });
    let mut sent = 0;
    eventually("a third connection", async || {
        client.send(send("orders")).await.expect("a send");
        sent += 1;
        (addresses(&test).await.len() >= 3).then_some(())
    })
    .await;
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, sent);

    // The call that was under way when its connection became old is answered over it.
    assert!(!waiting.is_finished());
    let sent = client.send(send("bills")).await.expect("a send").into_inner();
    let read = waiting.await.unwrap().expect("an answer").into_inner().messages;
    assert_eq!((read.len(), read[0].msg_id), (1, sent.msg_id));
}

#[tokio::test]
async fn a_server_with_old_connections_ends_in_order() {
    let test = with_queues().await;
    let mut client = patient(&test.server);
    let mut waiter = client.clone();
    let waiting = tokio::spawn(async move { waiter.read_batch(waiting_for("bills")).await });
    eventually("a second connection", async || {
        client.send(send("orders")).await.expect("a send");
        (addresses(&test).await.len() >= 2).then_some(())
    })
    .await;
    test.server.signal(Signal::SIGTERM);
    assert!(waiting.await.unwrap().expect("an answer").into_inner().messages.is_empty());
    let (status, log) = test.server.exit().await;
    assert!(status.success(), "{status}: {log}");
}

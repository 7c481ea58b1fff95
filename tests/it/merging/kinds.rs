//! Sends with and without deduplication ids, mixed: each kind gathers by itself.

use pgmq_grpc::proto::v1::{SendRequest, SendResponse};
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};

use crate::harness::{Client, Gate, Refusal, Test, eventually};

type Sending = JoinHandle<Result<SendResponse, Status>>;

/// How many messages wait in a lane at most.
const LANE: usize = 50;

fn sending(client: &Client, id: String, message: &str) -> Sending {
    let mut client = client.clone();
    let request = SendRequest {
        queue: "orders".to_owned(),
        message: message.to_owned(),
        deduplication_id: id,
        ..Default::default()
    };
    tokio::spawn(async move { client.queue.send(request).await.map(Response::into_inner) })
}

#[tokio::test]
async fn callers_with_and_without_ids_do_not_undo_each_others_merging() {
    let mut test = Test::start_with(&["--max-waiting-messages", "100"]).await;
    test.client.create("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let first = [sending(&test.client, "first".to_owned(), "0"), sending(&test.client, String::new(), "0")];
    for statement in ["send_keyed", "send_one"] {
        gate.arrival(&test, statement).await;
    }
    // One after the other of each kind, and more than have room.
    let mut callers: Vec<Sending> = (0..2 * LANE + 6)
        .map(|number| {
            let id = if number % 2 == 0 { format!("k{number}") } else { String::new() };
            sending(&test.client, id, "1")
        })
        .collect();
    eventually("the refusals", async || {
        (callers.iter().filter(|caller| caller.is_finished()).count() == 6).then_some(())
    })
    .await;
    gate.open(&test).await;
    for caller in first {
        caller.await.unwrap().expect("a send");
    }
    let mut refused = 0;
    for caller in callers.drain(..) {
        if let Err(status) = caller.await.unwrap() {
            Refusal::expect(&status, Code::Unavailable, "OVERLOADED");
            refused += 1;
        }
    }
    assert_eq!(refused, 6);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2 + 2 * LANE as i64);
    // The two at the gate, and one statement for all that waited of each kind.
    assert_eq!(test.value::<i64>("SELECT count(DISTINCT xmin::text) FROM pgmq.q_orders").await, 4);
}

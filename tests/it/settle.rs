//! Settles by receipt: what a fence lets through, and what it tells.

use pgmq_grpc::proto::v1::Outcome;

use crate::harness::Test;

#[tokio::test]
async fn a_receipt_deletes_its_message_once() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let read = test.client.read_one("orders").await;
    assert_eq!(test.client.delete("orders", &[&read.receipt]).await, [Outcome::Done]);
    assert_eq!(test.client.delete("orders", &[&read.receipt]).await, [Outcome::NotFound]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

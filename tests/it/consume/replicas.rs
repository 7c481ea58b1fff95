//! Streams on several servers of one database.

use pgmq_grpc::proto::v1::{ConsumeStart, SettleAction};

use super::{Consumer, Outcome, start};
use crate::harness::{Client, Server, Test};
use crate::read_batch::ids;

#[tokio::test]
async fn a_settle_at_another_replica_makes_room() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 3]).await;
    let one = ConsumeStart { max_in_flight: 1, ..start("orders") };
    let mut here = Consumer::start(&test.client, one).await;
    let held = here.message().await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    let mut there = Consumer::start(&elsewhere, ConsumeStart { max_in_flight: 1, ..start("orders") }).await;
    assert_eq!(ids(&[there.message().await]), [2]);

    assert_eq!(there.settle(SettleAction::Delete, &[&held]).await, [Outcome::Done]);
    assert_eq!(here.message().await.msg_id, 3);
    assert_eq!(here.settle(SettleAction::Delete, &[&held]).await, [Outcome::NotFound]);
    assert_eq!(here.heartbeat().await.in_flight, 1);
}

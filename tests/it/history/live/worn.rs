//! Callers whose work fails again and again, in a queue that bears that a few times only.

use pgmq_grpc::proto::v1::Message;
use rand::Rng;

use super::WORN;
use super::readers::{delete, read, read_by_policy, settle_as};
use super::worker::Worker;
use crate::history::record::{Action, Send};

/// Sends, reads, and seldom succeeds.
pub(super) async fn by_failing(mut worker: Worker) {
    while worker.pause(60).await {
        for _ in 0..worker.random.random_range(0..3) {
            let send = Send { queue: WORN.to_owned(), body: worker.body(), ..Send::default() };
            super::senders::send_one(&mut worker, send).await;
        }
        let wait = worker.millis(500).as_secs_f64();
        let count = worker.random.random_range(1..15);
        let messages = match worker.chance(50) {
            true => read_by_policy(&mut worker, WORN, count, wait).await,
            false => read(&mut worker, WORN, count, 1.0, wait).await,
        };
        let mut piles: [Vec<Message>; 4] = Default::default();
        for message in messages {
            let pile = match worker.random.random_range(0..100) {
                0..15 => 0,
                15..45 => 1,
                45..60 => 2,
                _ => 3,
            };
            piles[pile].push(message);
        }
        let [deleted, released, dead, _forgotten] = piles;
        delete(&mut worker, WORN, &deleted, false).await;
        settle_as(&mut worker, WORN, WORN, Action::Hide, &released).await;
        settle_as(&mut worker, WORN, WORN, Action::DeadLetter, &dead).await;
        if worker.chance(1) {
            worker.disconnect();
        }
    }
}

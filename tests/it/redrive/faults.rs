//! Redrives that take long, or that meet others who move, empty and drop the same queues.

use pgmq_grpc::proto::v1::{DropQueueRequest, PurgeQueueRequest};
use tonic::Code;

use super::{redrive, redrive_of, redriven, with_dead_letters};
use crate::harness::Refusal;
use crate::moving::slow_down;

#[tokio::test]
async fn a_redrive_rests_after_each_step_for_as_long_as_it_took() {
    let mut test = with_dead_letters(2_500).await;
    slow_down(&test).await;
    assert_eq!(redrive(&mut test.client, redrive_of("dead")).await, redriven(2_500, false));
    // Each statement's beginning, a second of its own, and a second of rest.
    let shortest = "SELECT extract(epoch FROM min(gap))::float8 FROM (SELECT enqueued_at - lag(enqueued_at) OVER (ORDER BY enqueued_at) AS gap
        FROM (SELECT DISTINCT enqueued_at FROM pgmq.q_orders) AS steps) AS gaps";
    let shortest: f64 = test.value(shortest).await;
    assert!(shortest > 1.9, "{shortest}");
}

#[tokio::test]
async fn a_redrive_beside_dead_lettering_drops_and_purges_does_not_wait_in_a_ring() {
    let test = with_dead_letters(3_000).await;
    test.run("INSERT INTO pgmq.q_orders (vt, message) SELECT now(), to_jsonb(n) FROM generate_series(3001, 6000) AS n").await;
    let [mut redriver, mut purger, mut dropper] = [(); 3].map(|()| test.client.clone());
    let mover = test.database.connect().await;
    // It locks the source before the dead-letter queue.
    let dead_letter =
        "WITH gone AS (DELETE FROM pgmq.q_orders AS q USING (SELECT c.msg_id FROM pgmq.q_orders AS c
          ORDER BY c.msg_id LIMIT 50 FOR UPDATE SKIP LOCKED) AS chosen
        WHERE q.msg_id = chosen.msg_id RETURNING q.message)
      INSERT INTO pgmq.q_dead (vt, message, headers)
        SELECT now(), g.message, '{\"x-pgmq-dead-letter\": {\"queue\": \"orders\"}}' FROM gone AS g";
    let redriving = async {
        for _ in 0..40 {
            match redriver.admin.redrive_messages(redrive_of("dead")).await {
                Ok(_) => {}
                Err(refused) => drop(Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND")),
            }
        }
    };
    let moving = async {
        for _ in 0..400 {
            if let Err(failed) = mover.batch_execute(dead_letter).await {
                assert_eq!(
                    failed.code().map(tokio_postgres::error::SqlState::code),
                    Some("42P01"),
                    "{failed:?}"
                );
            }
        }
    };
    let purging = async {
        for n in 0..40 {
            let queue = ["orders", "dead"][n % 2].to_owned();
            match purger.queue.purge_queue(PurgeQueueRequest { queue }).await {
                Ok(_) => {}
                Err(refused) => drop(Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND")),
            }
        }
    };
    let dropping = async {
        for n in 0..20 {
            let queue = ["orders", "dead"][n % 2];
            dropper.queue.drop_queue(DropQueueRequest { queue: queue.to_owned() }).await.expect("a drop");
            dropper.create(queue).await;
        }
    };
    tokio::join!(redriving, moving, purging, dropping);
}

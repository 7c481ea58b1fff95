//! Operators who move what was archived or set aside to a queue where nobody sends, and callers who wait for it there.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::{Message, ReadRequest};
use rand::Rng;

use super::keepers::{choose, choose_letters, redrive, replay};
use super::lists::list_archive;
use super::readers::{delete, deliver, read, reading, wait_by_policy};
use super::worker::{Asked, Worker, verdict};
use super::{BURIED, BURIED_GROUPS, ELSEWHERE, FLEETING, GROUPS, KEPT, WORN};
use crate::harness::seconds;
use crate::history::operators::Move;
use crate::history::record::{Part, Read, Verdict};

/// Moves messages out of an archive or a dead-letter queue, and repeats that; and sometimes lets those who wait wait long.
pub(super) async fn forward(mut worker: Worker) {
    while worker.pause(1_500).await {
        let dead_letters = [None, Some((WORN, BURIED)), Some((GROUPS, BURIED_GROUPS))];
        let dead_letters = dead_letters[worker.random.random_range(0..dead_letters.len())];
        let chosen = match dead_letters {
            Some((queue, buried)) => choose_letters(&mut worker, queue, buried).await,
            None => {
                let queue = if worker.chance(50) { KEPT } else { FLEETING };
                let rows = list_archive(&mut worker, queue, &[]).await;
                choose(&mut worker, queue, &rows)
            }
        };
        let moved = Move { to: Some(ELSEWHERE.to_owned()), ..chosen };
        for _ in 0..worker.random.random_range(1..3) {
            match dead_letters {
                Some((_, buried)) => redrive(&mut worker, buried, moved.clone()).await,
                None => replay(&mut worker, moved.clone()).await,
            }
        }
        if worker.chance(20) {
            worker.goes_on(Duration::from_secs(9)).await;
        }
    }
}

/// Waits for what is moved, as long as the policy says or longer, and sometimes lets a message fall due again.
pub(super) async fn wait(mut worker: Worker) {
    worker.impatience = 0;
    worker.leaves_at_the_end = true;
    while worker.pause(10).await {
        let count = worker.random.random_range(1..8);
        // Each new read looks for itself, so that who waits long is the one who can sleep through something.
        let messages = match worker.chance(30) {
            true => wait_by_policy(&mut worker, ELSEWHERE, count, 1.0).await,
            false => read(&mut worker, ELSEWHERE, count, 1.0, 10.0).await,
        };
        let done: Vec<Message> = messages.into_iter().filter(|_| worker.chance(80)).collect();
        delete(&mut worker, ELSEWHERE, &done, false).await;
    }
}

/// Follows by streams that always have room for more, each for a while, with pauses in between.
pub(super) async fn follow(mut worker: Worker) {
    worker.impatience = 0;
    while worker.pause(6_000).await {
        let until = Instant::now() + worker.millis(12_000);
        let asked = worker.run.now();
        let request = ReadRequest {
            queue: ELSEWHERE.to_owned(),
            visibility_timeout: seconds(2.0),
            max_in_flight: 500,
            heartbeat_interval: seconds(1.0),
            ..Default::default()
        };
        let mut client = worker.client();
        let mut stream = match client.read(request).await {
            Err(status) => {
                let call = Asked::new("Read", vec![Part::Read(reading(ELSEWHERE))]);
                worker.record(call, asked, verdict(&status, false));
                continue;
            }
            Ok(stream) => stream.into_inner(),
        };
        let open_since = Some(worker.run.now());
        let mut parts = vec![Part::Read(Read { stream: true, open_since, ..reading(ELSEWHERE) })];
        while !worker.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(Ok(Some(reply))) = tokio::time::timeout(left, stream.message()).await else { break };
            deliver(&mut parts, &reply.messages, worker.run.now());
            delete(&mut worker, ELSEWHERE, &reply.messages, false).await;
        }
        worker.record(Asked::new("Read", parts), asked, Verdict::Unknown("broken or left".to_owned()));
    }
}

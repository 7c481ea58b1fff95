//! How many messages this replica has moved, by queue.
//!
//! The counts are kept in memory alone: they cost no statement, and begin with the server. Those of a queue that was dropped
//! and made anew begin with it, which a queue's `created_at` tells. Who made or dropped a queue may not know whether it is
//! another one now, so what is counted from then on is kept apart until somebody asks who knows.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::sync::Cache;

use crate::domain::queue::MoveCounts;
use crate::domain::{QueueName, Timestamp};

/// How many queues are remembered: as many as have their tables remembered.
const CAPACITY: usize = 10_000;

/// The counts of the queues whose messages were moved.
pub(super) struct Moves {
    queues: Cache<QueueName, Arc<Mutex<Counted>>>,
}

#[derive(Default)]
struct Counted {
    /// What was counted, for a queue of this age if somebody has asked.
    counts: MoveCounts,
    created_at: Option<Timestamp>,
    /// The part of it since the queue may have become another one.
    since_remade: Option<MoveCounts>,
}

impl Default for Moves {
    fn default() -> Self {
        Self { queues: Cache::new(CAPACITY) }
    }
}

impl Moves {
    /// Counts what was moved.
    pub(super) fn add(&self, queue: &QueueName, moved: MoveCounts) {
        self.with(queue, |counted| {
            counted.counts += moved;
            if let Some(since_remade) = &mut counted.since_remade {
                *since_remade += moved;
            }
        });
    }

    /// The queue may be another one from now on.
    pub(super) fn remade(&self, queue: &QueueName) {
        if self.queues.peek(queue).is_some() {
            self.with(queue, |counted| counted.since_remade = Some(MoveCounts::default()));
        }
    }

    /// The counts of the queue that was made at a moment.
    pub(super) fn of(&self, queue: &QueueName, created_at: Timestamp) -> MoveCounts {
        self.with(queue, |counted| {
            let since_remade = counted.since_remade.take();
            match counted.created_at.replace(created_at) {
                Some(known) if known == created_at => {}
                Some(_) => counted.counts = since_remade.unwrap_or_default(),
                None => counted.counts = since_remade.unwrap_or(counted.counts),
            }
            counted.counts
        })
    }

    fn with<T>(&self, queue: &QueueName, act: impl FnOnce(&mut Counted) -> T) -> T {
        let Ok(counted) = self.queues.get_or_insert_with(queue, || Ok::<_, Infallible>(Arc::default()));
        act(&mut counted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLAYED: MoveCounts = MoveCounts { dead_lettered: 0, redriven: 0, replayed: 1 };

    fn queue() -> QueueName {
        QueueName::try_from("a".to_owned()).expect("a good name")
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_unix_micros(micros)
    }

    fn replayed(moves: &Moves, created_at: i64) -> u64 {
        moves.of(&queue(), at(created_at)).replayed
    }

    #[test]
    fn what_is_counted_adds_up() {
        let moves = Moves::default();
        moves.add(&queue(), REPLAYED);
        moves.add(&queue(), MoveCounts { dead_lettered: 3, redriven: 2, replayed: 1 });
        assert_eq!(moves.of(&queue(), at(1)), MoveCounts { dead_lettered: 3, redriven: 2, replayed: 2 });
    }

    #[test]
    fn a_queue_that_was_made_anew_begins_anew() {
        let moves = Moves::default();
        moves.add(&queue(), REPLAYED);
        assert_eq!(replayed(&moves, 1), 1);
        moves.remade(&queue());
        moves.add(&queue(), REPLAYED);
        moves.add(&queue(), REPLAYED);
        assert_eq!((replayed(&moves, 2), replayed(&moves, 2)), (2, 2));
        // By plain SQL, which nobody tells.
        assert_eq!(replayed(&moves, 3), 0);
    }

    #[test]
    fn a_queue_that_was_made_anew_before_anybody_asked_begins_anew() {
        let moves = Moves::default();
        moves.add(&queue(), REPLAYED);
        moves.remade(&queue());
        assert_eq!(replayed(&moves, 2), 0);
    }

    #[test]
    fn a_queue_that_somebody_wanted_to_make_goes_on() {
        let moves = Moves::default();
        assert_eq!(replayed(&moves, 1), 0);
        moves.add(&queue(), REPLAYED);
        moves.remade(&queue());
        moves.add(&queue(), REPLAYED);
        assert_eq!(replayed(&moves, 1), 2);
        moves.add(&queue(), REPLAYED);
        assert_eq!(replayed(&moves, 1), 3);
    }
}

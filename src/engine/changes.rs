//! What a call or a transaction has changed, told to those who wait once it is committed.

use std::collections::BTreeSet;

use super::events::Events;
use crate::domain::{QueueName, Receipt};

/// The most settled messages that are named one by one; beyond them windows are asked to look for themselves.
const MAX_NAMED: usize = 65_536;

/// Changes in the order in which they were made, to be told after the commit and forgotten with a rollback.
#[derive(Debug, Default)]
pub struct Changes {
    changes: Vec<Change>,
    named: usize,
    remade: BTreeSet<QueueName>,
}

#[derive(Debug, PartialEq)]
enum Change {
    Arrived(QueueName),
    Settled(QueueName, Vec<i64>),
    Released(QueueName, Vec<Receipt>),
    Rescheduled(QueueName),
}

impl Changes {
    /// Messages came, or became visible.
    pub fn arrived(&mut self, queue: &QueueName) {
        self.push(Change::Arrived(queue.clone()));
    }

    /// Messages were settled.
    pub fn settled(&mut self, queue: &QueueName, msg_ids: impl Iterator<Item = i64>) {
        let msg_ids: Vec<i64> = msg_ids.collect();
        self.named += msg_ids.len();
        if self.named > MAX_NAMED {
            self.push(Change::Settled(queue.clone(), Vec::new()));
            self.rescheduled(queue);
        } else if !msg_ids.is_empty() {
            self.push(Change::Settled(queue.clone(), msg_ids));
        }
    }

    /// Deliveries were released.
    pub fn released(&mut self, queue: &QueueName, receipts: impl Iterator<Item = Receipt>) {
        let receipts: Vec<Receipt> = receipts.collect();
        self.named += receipts.len();
        if self.named > MAX_NAMED {
            self.rescheduled(queue);
        } else if !receipts.is_empty() {
            self.push(Change::Released(queue.clone(), receipts));
        }
    }

    /// Messages got another `vt`, or all are gone.
    pub fn rescheduled(&mut self, queue: &QueueName) {
        self.push(Change::Rescheduled(queue.clone()));
    }

    /// The queue was made or dropped: nothing that is remembered of it holds.
    pub fn remade(&mut self, queue: &QueueName) {
        self.remade.insert(queue.clone());
    }

    /// The queues that were made or dropped.
    pub fn remade_queues(&self) -> impl Iterator<Item = &QueueName> {
        self.remade.iter()
    }

    /// Tells those who wait.
    pub fn tell(self, events: &Events) {
        for queue in &self.remade {
            events.remade(queue);
        }
        for change in self.changes {
            match change {
                Change::Arrived(queue) => events.arrived(&queue),
                Change::Settled(queue, msg_ids) => events.settled(&queue, msg_ids.into_iter()),
                Change::Released(queue, receipts) => events.released(&queue, receipts.into_iter()),
                Change::Rescheduled(queue) => events.rescheduled(&queue),
            }
        }
    }

    /// Many changes of one kind in a row are one.
    fn push(&mut self, change: Change) {
        if self.changes.last() != Some(&change) {
            self.changes.push(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::try_from(name.to_owned()).expect("a good name")
    }

    #[test]
    fn many_sends_to_one_queue_are_one_change() {
        let mut changes = Changes::default();
        for _ in 0..1_000 {
            changes.arrived(&queue("a"));
        }
        assert_eq!(changes.changes, [Change::Arrived(queue("a"))]);
    }

    #[test]
    fn a_transaction_without_end_names_only_so_many_messages() {
        let mut changes = Changes::default();
        for _ in 0..1_000 {
            changes.settled(&queue("a"), 0..1_000);
        }
        let named: usize = changes
            .changes
            .iter()
            .map(|change| match change {
                Change::Settled(_, msg_ids) => msg_ids.len(),
                _ => 0,
            })
            .sum();
        assert!(named <= MAX_NAMED, "{named}");
        assert!(changes.changes.contains(&Change::Rescheduled(queue("a"))));
    }

    #[test]
    fn those_who_wait_hear_of_changes_when_they_are_told() {
        let events = Events::default();
        let wake = std::sync::Arc::default();
        let followed = events.follow(&queue("a"));
        followed.add_reader(&wake, false);
        let mut changes = Changes::default();
        changes.arrived(&queue("a"));
        assert!(!wake.is_due());
        changes.tell(&events);
        assert!(wake.is_due());
    }
}

//! What a call or a transaction has changed, told to those who wait once it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::events::Events;
use crate::domain::dead_letter::SetAside;
use crate::domain::message::Schedule;
use crate::domain::queue::MoveCounts;
use crate::domain::{QueueName, Receipt};

/// The most settled messages that are named one by one; beyond them windows are asked to look for themselves.
const MAX_NAMED: usize = 65_536;

/// Changes in the order in which they were made, to be told after the commit and forgotten with a rollback.
#[derive(Debug, Default)]
pub struct Changes {
    changes: Vec<Change>,
    named: usize,
    remade: BTreeSet<QueueName>,
    policies: bool,
    /// Queues whose messages were read.
    read: BTreeSet<QueueName>,
    moved: BTreeMap<QueueName, MoveCounts>,
}

#[derive(Debug, PartialEq)]
enum Change {
    Arrived(QueueName),
    ArrivesAt(QueueName, Instant),
    Settled(QueueName, Vec<i64>),
    Released(QueueName, Vec<Receipt>),
    Rescheduled(QueueName),
    RescheduledTo(QueueName, Instant),
}

impl Change {
    fn queue(&self) -> &QueueName {
        match self {
            Self::Arrived(queue)
            | Self::ArrivesAt(queue, _)
            | Self::Settled(queue, _)
            | Self::Released(queue, _)
            | Self::Rescheduled(queue)
            | Self::RescheduledTo(queue, _) => queue,
        }
    }
}

impl Changes {
    /// Messages came, or became visible.
    pub fn arrived(&mut self, queue: &QueueName) {
        self.push(Change::Arrived(queue.clone()));
    }

    /// Messages were sent just now. Those that wait for a moment of the database's clock are looked at now, so that it is
    /// asked for the moment.
    pub fn sent(&mut self, queue: &QueueName, schedules: impl Iterator<Item = Schedule>) {
        let now = Instant::now();
        let mut arrived = false;
        for schedule in schedules {
            match schedule {
                Schedule::AfterMillis(millis @ 1..) if self.named < MAX_NAMED => {
                    self.named += 1;
                    self.push(Change::ArrivesAt(queue.clone(), after(now, millis)));
                }
                _ => arrived = true,
            }
        }
        if arrived {
            self.arrived(queue);
        }
    }

    /// Messages were settled.
    pub fn settled(&mut self, queue: &QueueName, msg_ids: impl Iterator<Item = i64>) {
        let msg_ids: Vec<i64> = msg_ids.collect();
        self.named += msg_ids.len();
        if self.named > MAX_NAMED {
            self.push(Change::Settled(queue.clone(), Vec::new()));
            self.rescheduled(queue);
        } else if let Some(Change::Settled(last, named)) = self.changes.last_mut()
            && last == queue
        {
            named.extend(msg_ids);
        } else if !msg_ids.is_empty() {
            self.push(Change::Settled(queue.clone(), msg_ids));
        }
    }

    /// Deliveries were released just now, each for after so many milliseconds.
    pub fn released(&mut self, queue: &QueueName, released: impl Iterator<Item = (Receipt, i64)>) {
        let (receipts, delays_ms): (Vec<Receipt>, BTreeSet<i64>) = released.unzip();
        self.named += receipts.len();
        if self.named > MAX_NAMED {
            self.rescheduled(queue);
        } else if !receipts.is_empty() {
            self.push(Change::Released(queue.clone(), receipts));
            self.sent(queue, delays_ms.into_iter().map(Schedule::AfterMillis));
        }
    }

    /// Messages left a queue without being settled: for another queue, or for the archive.
    pub fn set_aside(&mut self, queue: &QueueName, aside: &SetAside) {
        self.settled(queue, aside.msg_ids.iter().copied());
        if let Some(to) = &aside.to {
            self.arrived(to);
            let dead_lettered = aside.msg_ids.len() as u64;
            self.moved(queue, MoveCounts { dead_lettered, ..MoveCounts::default() });
        }
    }

    /// Messages got another `vt`, or all are gone.
    pub fn rescheduled(&mut self, queue: &QueueName) {
        self.push(Change::Rescheduled(queue.clone()));
    }

    /// Messages were hidden just now for so many milliseconds.
    pub fn rescheduled_for(&mut self, queue: &QueueName, millis: i64) {
        match millis {
            1.. => self.push(Change::RescheduledTo(queue.clone(), after(Instant::now(), millis))),
            _ => self.rescheduled(queue),
        }
    }

    /// Messages were moved out of the queue or into it, which is counted.
    pub fn moved(&mut self, queue: &QueueName, counts: MoveCounts) {
        *self.moved.entry(queue.clone()).or_default() += counts;
    }

    /// Messages were read: until the end, others pass over them.
    pub fn read(&mut self, queue: &QueueName) {
        self.read.insert(queue.clone());
    }

    /// Nothing was changed after all: what others passed over meanwhile is there again.
    pub fn undone(self, events: &Events) {
        let changed = self.changes.iter().map(Change::queue);
        let touched: BTreeSet<&QueueName> = changed.chain(&self.read).collect();
        touched.into_iter().for_each(|queue| events.arrived(queue));
    }

    /// The queue was made or dropped: nothing that is remembered of it holds.
    pub fn remade(&mut self, queue: &QueueName) {
        self.remade.insert(queue.clone());
    }

    /// A queue's policy was changed.
    pub fn policy_changed(&mut self) {
        self.policies = true;
    }

    /// Whether a policy was changed.
    pub fn concern_policies(&self) -> bool {
        self.policies
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
        for (queue, counts) in &self.moved {
            events.moved(queue, *counts);
        }
        for change in self.changes {
            match change {
                Change::Arrived(queue) => events.arrived(&queue),
                Change::ArrivesAt(queue, moment) => events.arrives_at(&queue, moment),
                Change::Settled(queue, msg_ids) => events.settled(&queue, &msg_ids.into_iter().collect()),
                Change::Released(queue, receipts) => events.released(&queue, receipts.into_iter()),
                Change::Rescheduled(queue) => events.rescheduled(&queue),
                Change::RescheduledTo(queue, moment) => events.rescheduled_to(&queue, moment),
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

/// A moment so many milliseconds after another; one beyond the clock is as good as a year.
fn after(now: Instant, millis: i64) -> Instant {
    let span = Duration::from_millis(millis.unsigned_abs());
    now.checked_add(span).unwrap_or(now + Duration::from_hours(365 * 24))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;
    use crate::engine::Interest;

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
        followed.add_reader(&wake, Interest::Visible);
        let mut changes = Changes::default();
        changes.arrived(&queue("a"));
        assert!(!wake.is_due());
        changes.tell(&events);
        assert!(wake.is_due());
    }

    #[test]
    fn what_was_undone_wakes_those_who_passed_over_it() {
        let events = Events::default();
        let wakes: [std::sync::Arc<crate::engine::Wake>; 3] = Default::default();
        let followed: Vec<_> = ["read", "changed", "other"].map(|name| events.follow(&queue(name))).into();
        for (followed, wake) in followed.iter().zip(&wakes) {
            followed.add_reader(wake, Interest::Visible);
        }
        let mut changes = Changes::default();
        changes.read(&queue("read"));
        changes.settled(&queue("changed"), [1].into_iter());
        changes.undone(&events);
        assert!(wakes[0].is_due() && wakes[1].is_due() && !wakes[2].is_due());
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_messages_wake_nobody_before_their_time() {
        let events = Events::default();
        let wake = std::sync::Arc::default();
        let followed = events.follow(&queue("a"));
        followed.add_reader(&wake, Interest::Visible);
        let mut changes = Changes::default();
        changes.sent(&queue("a"), [2_000, 1_000].map(Schedule::AfterMillis).into_iter());
        changes.rescheduled_for(&queue("a"), 3_000);
        changes.tell(&events);
        assert!(!wake.is_due());
        tokio::time::advance(Duration::from_millis(1_050)).await;
        assert!(wake.is_due());

        let mut changes = Changes::default();
        changes.sent(&queue("a"), [Schedule::AfterMillis(9_000), Schedule::NOW].into_iter());
        wake.take();
        changes.tell(&events);
        assert!(wake.is_due());
    }

    #[tokio::test(start_paused = true)]
    async fn each_moment_of_what_was_released_together_wakes() {
        let events = Events::default();
        let wake = std::sync::Arc::default();
        let followed = events.follow(&queue("a"));
        followed.add_reader(&wake, Interest::Visible);
        let now = Timestamp::from_unix_micros(1);
        let receipt = |msg_id| Receipt::new(&queue("a"), now, msg_id, 1, now, Some(now));
        let mut changes = Changes::default();
        changes.released(
            &queue("a"),
            [(1, 9_000), (2, 1_000), (3, 1_000)].map(|(id, ms)| (receipt(id), ms)).into_iter(),
        );
        changes.tell(&events);
        for wait in [1_050, 8_000] {
            assert!(!wake.is_due());
            tokio::time::advance(Duration::from_millis(wait)).await;
            assert!(wake.is_due(), "after {wait} ms more");
            wake.take();
        }
        assert_eq!(wake.next(), None);
    }
}

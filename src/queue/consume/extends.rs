//! When and for how long a stream's messages are kept hidden on behalf of their client.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Receipt;
use crate::engine::Held;

/// What `auto_extend` knows.
#[derive(Debug)]
pub(super) struct Extends {
    timeout: Duration,
    max_extension: Duration,
    patience: Duration,
    last_sign: Instant,
    next: Option<Instant>,
}

impl Extends {
    /// Keeps messages hidden for `timeout` again and again, up to `max_extension` after their deliveries, for as long
    /// as the client is not silent for longer than `patience`.
    pub(super) fn new(timeout: Duration, max_extension: Duration, patience: Duration) -> Self {
        Self { timeout, max_extension, patience, last_sign: Instant::now(), next: None }
    }

    /// Notes that the client is alive.
    pub(super) fn sign_of_life(&mut self) {
        self.last_sign = Instant::now();
    }

    /// Notes that messages were delivered.
    pub(super) fn delivered(&mut self) {
        self.look_after(self.timeout / 2);
    }

    /// Notes that an extension failed, or that others had locked a message: it is tried again while there is time.
    pub(super) fn failed(&mut self) {
        self.try_again_soon();
    }

    /// When to look for messages next; none while nothing is to be done, or the client is silent.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next.filter(|next| (*next).max(Instant::now()) <= self.last_sign + self.patience)
    }

    /// What is to be extended now: for how many milliseconds which deliveries. Those whose settles are pending are left
    /// alone, and so are those that the client has not taken: they go back if it does not come for them, and their
    /// fence would not let them.
    pub(super) fn due(
        &mut self,
        held: &[Held],
        pending: &HashSet<i64>,
        untaken: &HashSet<i64>,
    ) -> BTreeMap<i64, Vec<Receipt>> {
        let now = Instant::now();
        // Those that follow soon go along, so that there are few statements.
        let soon = now + self.timeout * 5 / 8;
        let mut groups: BTreeMap<i64, Vec<Receipt>> = BTreeMap::new();
        self.next = None;
        for held in held {
            let ends = held.taken + self.max_extension;
            if held.expires >= ends || pending.contains(&held.receipt.msg_id()) {
                continue;
            }
            if held.expires > soon {
                self.look_at(held.expires - self.timeout / 2);
                continue;
            }
            if untaken.contains(&held.receipt.msg_id()) {
                // It may be taken at any moment.
                self.try_again_soon();
                continue;
            }
            let hidden = self.timeout.min(ends.saturating_duration_since(now));
            // Rounded down: beyond the end, not even by a millisecond.
            match i64::try_from(hidden.as_millis()) {
                Ok(millis) if millis > 0 => groups.entry(millis).or_default().push(held.receipt),
                _ => {}
            }
        }
        if !groups.is_empty() {
            self.delivered();
        }
        groups
    }

    fn try_again_soon(&mut self) {
        self.look_after((self.timeout / 8).min(Duration::from_secs(1)));
    }

    fn look_after(&mut self, pause: Duration) {
        self.look_at(Instant::now() + pause);
    }

    fn look_at(&mut self, moment: Instant) {
        self.next = Some(self.next.map_or(moment, |next| next.min(moment)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::domain::{QueueName, Timestamp};

    const SECOND: Duration = Duration::from_secs(1);

    fn held(msg_id: i64, hidden: Duration) -> Held {
        let queue = QueueName::try_from("q".to_owned()).expect("a good name");
        let at = Timestamp::from_unix_micros(1);
        let now = Instant::now();
        Held { receipt: Receipt::new(&queue, at, msg_id, 1, at, Some(at)), taken: now, expires: now + hidden }
    }

    fn ids(groups: &BTreeMap<i64, Vec<Receipt>>) -> Vec<(i64, Vec<i64>)> {
        let group = |(millis, receipts): (&i64, &Vec<Receipt>)| {
            (*millis, receipts.iter().map(Receipt::msg_id).collect())
        };
        groups.iter().map(group).collect()
    }

    fn none() -> HashSet<i64> {
        HashSet::new()
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_extended_at_half_of_their_time() {
        let mut extends = Extends::new(10 * SECOND, 60 * SECOND, 50 * SECOND);
        assert_eq!(extends.next(), None);
        let message = held(1, 10 * SECOND);
        extends.delivered();
        assert_eq!(extends.next(), Some(Instant::now() + 5 * SECOND));
        advance(5 * SECOND).await;
        let later = held(2, 10 * SECOND);
        assert_eq!(ids(&extends.due(&[message, later], &none(), &none())), [(10_000, vec![1])]);
        assert_eq!(extends.next(), Some(Instant::now() + 5 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_extended_beyond_its_end() {
        let mut extends = Extends::new(10 * SECOND, 12 * SECOND, 50 * SECOND);
        let mut message = held(1, 10 * SECOND);
        extends.delivered();
        advance(5 * SECOND).await;
        assert_eq!(ids(&extends.due(&[message], &none(), &none())), [(7_000, vec![1])]);
        message.expires = message.taken + 12 * SECOND;
        advance(5 * SECOND).await;
        assert!(extends.due(&[message], &none(), &none()).is_empty());
        assert_eq!(extends.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_whose_settle_is_pending_are_left_alone() {
        let mut extends = Extends::new(10 * SECOND, 60 * SECOND, 50 * SECOND);
        let messages = [held(1, 10 * SECOND), held(2, 10 * SECOND)];
        extends.delivered();
        advance(5 * SECOND).await;
        assert_eq!(ids(&extends.due(&messages, &HashSet::from([1]), &none())), [(10_000, vec![2])]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_client_has_not_taken_is_not_extended_until_it_has() {
        let mut extends = Extends::new(16 * SECOND, 60 * SECOND, 50 * SECOND);
        let older = held(1, 16 * SECOND);
        extends.delivered();
        advance(2 * SECOND).await;
        let waiting = held(2, 16 * SECOND);
        extends.delivered();
        advance(6 * SECOND).await;
        // The older one's turn has come, and the other's would be soon.
        let untaken = HashSet::from([2]);
        assert_eq!(ids(&extends.due(&[older, waiting], &none(), &untaken)), [(16_000, vec![1])]);
        assert_eq!(extends.next(), Some(Instant::now() + SECOND), "it may be taken at any moment");
        advance(SECOND).await;
        assert_eq!(ids(&extends.due(&[waiting], &none(), &none())), [(16_000, vec![2])]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_gets_no_extensions_until_it_speaks() {
        let mut extends = Extends::new(10 * SECOND, 60 * SECOND, 4 * SECOND);
        extends.delivered();
        assert_eq!(extends.next(), None, "the patience ends before");
        advance(6 * SECOND).await;
        assert_eq!(extends.next(), None);
        extends.sign_of_life();
        assert!(extends.next().is_some_and(|next| next < Instant::now()));
        advance(5 * SECOND).await;
        assert_eq!(extends.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_extension_is_tried_again_soon() {
        let mut extends = Extends::new(16 * SECOND, 60 * SECOND, 50 * SECOND);
        let message = held(1, 16 * SECOND);
        extends.delivered();
        advance(8 * SECOND).await;
        extends.due(&[message], &none(), &none());
        extends.failed();
        assert_eq!(extends.next(), Some(Instant::now() + SECOND));
    }
}

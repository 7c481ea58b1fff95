//! What a stream's client holds: at most so many messages, each in a slot until it is settled or its time is up.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::Receipt;

/// The slots of one stream.
pub struct Window {
    size: usize,
    slots: Mutex<Slots>,
    freed: Notify,
}

#[derive(Default)]
struct Slots {
    held: HashMap<i64, Slot>,
    doubtful: bool,
}

struct Slot {
    receipt: Receipt,
    taken: Instant,
    expires: Instant,
}

/// A delivery that holds a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The delivery.
    pub receipt: Receipt,
    /// When it took the slot.
    pub taken: Instant,
    /// When its time is up.
    pub expires: Instant,
}

impl Window {
    /// A window of so many slots.
    pub fn new(size: usize) -> Self {
        Self { size, slots: Mutex::default(), freed: Notify::new() }
    }

    /// How many slots are free.
    pub fn room(&self) -> usize {
        self.size.saturating_sub(self.in_flight())
    }

    /// How many slots are taken.
    pub fn in_flight(&self) -> usize {
        self.lock().held.len()
    }

    /// Takes a slot for each message, for as long as it is hidden.
    pub fn take(&self, receipts: impl Iterator<Item = Receipt>, hidden: Duration) {
        let taken = Instant::now();
        let expires = taken + hidden;
        let mut slots = self.lock();
        for receipt in receipts {
            slots.held.insert(receipt.msg_id(), Slot { receipt, taken, expires });
        }
    }

    /// Gives deliveries another end, if they still hold their slots: never sooner than the one that they had.
    pub fn extend(&self, receipts: impl Iterator<Item = Receipt>, expires: Instant) {
        let mut slots = self.lock();
        for receipt in receipts {
            if let Some(slot) = slots.held.get_mut(&receipt.msg_id()).filter(|slot| slot.receipt == receipt) {
                slot.expires = slot.expires.max(expires);
            }
        }
    }

    /// The deliveries that hold slots, with their times.
    pub fn held(&self) -> Vec<Held> {
        let slots = self.lock();
        let held = slots.held.values();
        held.map(|slot| Held { receipt: slot.receipt, taken: slot.taken, expires: slot.expires }).collect()
    }

    /// Frees the slots of messages, if this stream holds them.
    pub fn free(&self, msg_ids: &HashSet<i64>) {
        let mut slots = self.lock();
        let before = slots.held.len();
        // Of many streams most hold little, and of a large stream little is settled at once.
        if before < msg_ids.len() {
            slots.held.retain(|msg_id, _| !msg_ids.contains(msg_id));
        } else {
            for msg_id in msg_ids {
                slots.held.remove(msg_id);
            }
        }
        if slots.held.len() < before {
            self.freed.notify_one();
        }
    }

    /// Frees the slots of deliveries, if they are still these: a released message may have been given to this stream
    /// again already.
    pub fn free_deliveries(&self, receipts: impl Iterator<Item = Receipt>) {
        let mut slots = self.lock();
        for receipt in receipts {
            if slots.held.get(&receipt.msg_id()).is_some_and(|slot| slot.receipt == receipt) {
                slots.held.remove(&receipt.msg_id());
            }
        }
        self.freed.notify_one();
    }

    /// Tells that the times of messages may have changed.
    pub fn doubt(&self) {
        self.lock().doubtful = true;
        self.freed.notify_one();
    }

    /// Tells that messages may have been settled elsewhere, which matters once the window is full.
    pub fn suspect(&self) {
        if self.room() == 0 {
            self.doubt();
        }
    }

    /// Waits until a slot was freed, or the slots should be looked at again.
    pub async fn changed(&self) {
        self.freed.notified().await;
    }

    /// The moment at which the first slot's time is up; now, if the times are in doubt; none if nothing is held.
    pub fn next_expiry(&self) -> Option<Instant> {
        let slots = self.lock();
        if slots.doubtful && !slots.held.is_empty() {
            return Some(Instant::now());
        }
        slots.held.values().map(|slot| slot.expires).min()
    }

    /// The deliveries that hold slots.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.lock().held.values().map(|slot| slot.receipt).collect()
    }

    /// Takes over what the database says of the deliveries that were asked about: how long each is still hidden, or
    /// none if its message is settled, visible again or read by another.
    pub fn corrected(&self, still_hidden: impl Iterator<Item = (Receipt, Option<Duration>)>) {
        let now = Instant::now();
        let mut slots = self.lock();
        slots.doubtful = false;
        for (receipt, hidden) in still_hidden {
            // Only if the slot is still this delivery's: the message may have been given to this stream again.
            let Some(slot) = slots.held.get_mut(&receipt.msg_id()).filter(|slot| slot.receipt == receipt)
            else {
                continue;
            };
            match hidden {
                Some(hidden) => slot.expires = now + hidden,
                None => drop(slots.held.remove(&receipt.msg_id())),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{QueueName, Timestamp};

    fn receipt(msg_id: i64, read_ct: i32) -> Receipt {
        let queue = QueueName::try_from("q".to_owned()).expect("a good name");
        let at = Timestamp::from_unix_micros(1);
        Receipt::new(&queue, at, msg_id, read_ct, at, Some(at))
    }

    #[tokio::test(start_paused = true)]
    async fn slots_are_taken_and_freed() {
        let window = Window::new(3);
        window.take([receipt(1, 1), receipt(2, 1)].into_iter(), Duration::from_secs(5));
        assert_eq!((window.room(), window.in_flight()), (1, 2));
        window.free(&HashSet::from([2, 99]));
        window.changed().await;
        assert_eq!((window.room(), window.in_flight()), (2, 1));
        assert_eq!(window.next_expiry(), Some(Instant::now() + Duration::from_secs(5)));
    }

    #[test]
    fn a_delivery_frees_its_own_slot_only() {
        let window = Window::new(3);
        window.take([receipt(1, 2), receipt(2, 1)].into_iter(), Duration::from_secs(5));
        window.free_deliveries([receipt(1, 1), receipt(2, 1), receipt(3, 1)].into_iter());
        assert_eq!(window.receipts(), [receipt(1, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_concerns_one_delivery_only_and_never_shortens() {
        let window = Window::new(3);
        let taken = Instant::now();
        let second = Duration::from_secs(1);
        window.take([receipt(1, 2), receipt(2, 1)].into_iter(), second * 5);
        window.extend([receipt(1, 1), receipt(2, 1), receipt(3, 1)].into_iter(), taken + second * 9);
        window.extend([receipt(1, 2)].into_iter(), taken + second);
        let mut held = window.held();
        held.sort_by_key(|held| held.receipt.msg_id());
        let expires = |seconds: u32| taken + second * seconds;
        assert_eq!(
            held,
            [
                Held { receipt: receipt(1, 2), taken, expires: expires(5) },
                Held { receipt: receipt(2, 1), taken, expires: expires(9) },
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_correction_concerns_one_delivery_only() {
        let window = Window::new(3);
        window.take([receipt(1, 2), receipt(2, 1)].into_iter(), Duration::from_secs(5));
        window.doubt();
        assert_eq!(window.next_expiry(), Some(Instant::now()));
        let hour = Duration::from_secs(3_600);
        window.corrected([(receipt(1, 1), None), (receipt(2, 1), Some(hour))].into_iter());
        assert_eq!(window.in_flight(), 2);
        window.corrected([(receipt(1, 2), None)].into_iter());
        assert_eq!(window.receipts(), [receipt(2, 1)]);
        assert_eq!(window.next_expiry(), Some(Instant::now() + hour));
    }
}

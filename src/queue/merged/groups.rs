//! Sends of many queues, in one transaction.
//!
//! Where a thousand queues are in use, a flush of each holds a message or two, and a commit for each would cost more than
//! everything else. So plain lanes join in groups. Whatever hurts a group is taken back with it, and then each lane goes
//! alone, the one that is to be blamed last: neighbours wait for it 20 ms on a lock, or a second on a trigger, and for the
//! next while it keeps to itself.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::sends::{SendParcel, Sends, by_ids, newly_sent};
use super::settles::FLUSH_TIME;
use crate::domain::{Deadline, Error, Kind, QueueName};
use crate::engine::Changes;
use crate::engine::merge::{Lead, Load, MAX_FLUSH_BYTES, MAX_FLUSH_ITEMS, Seat, Share};
use crate::pg::{Connection, GroupFailure, GroupPart, StoredGroup};

/// The most lanes that one leader takes along.
const MOST_FOLLOWERS: usize = 127;

/// A leader that has so many messages of its own takes nobody along: they would wait for all of these.
const LARGE: usize = 256;

/// How long a queue keeps to itself that has hurt a group.
const APART: Duration = Duration::from_secs(10);

/// What a flush has before it takes its parcels.
pub(super) enum Open {
    /// A connection for itself.
    Alone(Share, Connection),
    /// A connection, and the right to take others along.
    Leads(Lead<Rider>, Share, Connection),
    /// A place in another's group.
    Follows(Seat<Rider>),
}

/// One lane's parcels, on their way.
pub(super) struct Rider {
    pub(super) queue: QueueName,
    /// Whether it is a lane of messages with deduplication ids.
    pub(super) keyed: bool,
    /// Parcels without deduplication ids.
    pub(super) plain: Vec<SendParcel>,
    /// Parcels of lines with some.
    pub(super) with_ids: Vec<SendParcel>,
    /// Tells the lane of the error that those who wait in it are to hear, too.
    pub(super) done: oneshot::Sender<Option<Error>>,
}

impl Rider {
    /// A lane's parcels, and how it will hear that they have been answered.
    pub(super) fn new(
        queue: QueueName,
        parcels: Vec<SendParcel>,
        keyed: bool,
    ) -> (Self, oneshot::Receiver<Option<Error>>) {
        let (plain, with_ids) = if keyed { (Vec::new(), parcels) } else { by_ids(parcels) };
        let (done, told) = oneshot::channel();
        (Self { queue, keyed, plain, with_ids, done }, told)
    }

    /// How many messages without deduplication ids it has, and their bytes.
    fn size(&self) -> (usize, usize) {
        let loads = self.plain.iter().map(|parcel| (parcel.load.items(), parcel.load.bytes()));
        loads
            .fold((0, 0), |(items, bytes), (more_items, more_bytes)| (items + more_items, bytes + more_bytes))
    }
}

/// Queues that have hurt a group lately.
#[derive(Default)]
pub(super) struct Apart(Mutex<HashMap<QueueName, Instant>>);

impl Apart {
    /// Whether a queue keeps to itself.
    pub(super) fn holds(&self, queue: &QueueName) -> bool {
        let queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.get(queue).is_some_and(|until| Instant::now() < *until)
    }

    fn put<'a>(&self, hurtful: impl Iterator<Item = &'a QueueName>) {
        let now = Instant::now();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, until| now < *until);
        queues.extend(hurtful.map(|queue| (queue.clone(), now + APART)));
    }
}

impl Sends {
    /// Inserts a lane's parcels, and those of the lanes that it takes along.
    pub(super) async fn lead(&self, mut lead: Lead<Rider>, connection: Connection, rider: Rider) {
        let mut riders = match rider.size().0 < LARGE {
            true => lead.gather(MOST_FOLLOWERS).await,
            false => Vec::new(),
        };
        if riders.is_empty() {
            lead.during(self.store_alone(connection, rider)).await;
            return;
        }
        riders.push(rider);
        let (connection, blamed) = lead.during(self.store_groups(connection, riders)).await;
        // Whom nobody waits for any more.
        lead.pass_on();
        self.store_each(connection, blamed.into_iter()).await;
    }

    /// Inserts the parcels of several lanes, and gives those that are to be blamed for a failure.
    async fn store_groups(&self, mut connection: Connection, riders: Vec<Rider>) -> (Connection, Vec<Rider>) {
        let mut blamed = Vec::new();
        for riders in portions(riders) {
            connection = self.store_group(connection, riders, &mut blamed).await;
        }
        (connection, blamed)
    }

    /// Inserts the parcels of lanes that go together in one transaction.
    async fn store_group(
        &self,
        mut connection: Connection,
        mut riders: Vec<Rider>,
        blamed: &mut Vec<Rider>,
    ) -> Connection {
        // Two groups, or a group and somebody's transaction, lock tables and rows in one order.
        riders.sort_by(|one, other| one.queue.cmp(&other.queue));
        let (mut together, alone): (Vec<Rider>, Vec<Rider>) =
            riders.into_iter().partition(|rider| rider.size().0 > 0);
        if together.len() < 2 {
            return self.store_each(connection, together.into_iter().chain(alone)).await;
        }
        connection.set_deadline(Deadline::within(FLUSH_TIME));
        match connection.send_group(&parts(&together)).await {
            Ok(stored) => self.stored(&mut together, stored),
            Err(GroupFailure { error, .. }) if error.kind() == Kind::OutcomeUnknown => {
                for parcel in together.iter_mut().flat_map(|rider| rider.plain.drain(..)) {
                    let verdicts = vec![Err(error.clone()); parcel.load.items()];
                    parcel.answer(Ok(verdicts));
                }
            }
            Err(GroupFailure { error, culprit }) => {
                tracing::debug!(%error, "queues that were to be stored together are stored one by one");
                match culprit {
                    Some(culprit) => {
                        let culprit = together.remove(culprit);
                        self.apart.put(std::iter::once(&culprit.queue));
                        blamed.push(culprit);
                    }
                    // The commit was refused, because of any of them.
                    None if error.kind() != Kind::DatabaseUnavailable => {
                        self.apart.put(together.iter().map(|rider| &rider.queue));
                    }
                    None => {}
                }
            }
        }
        self.store_each(connection, together.into_iter().chain(alone)).await
    }

    async fn store_each(
        &self,
        mut connection: Connection,
        riders: impl Iterator<Item = Rider>,
    ) -> Connection {
        for rider in riders {
            connection = self.store_alone(connection, rider).await;
        }
        connection
    }

    /// Answers what a group has stored.
    fn stored(&self, riders: &mut [Rider], StoredGroup { parts, slow }: StoredGroup) {
        self.apart.put(slow.map(|place| &riders[place].queue).into_iter());
        let mut changes = Changes::default();
        for (rider, msg_ids) in riders.iter_mut().zip(parts) {
            let messages = rider.plain.iter().flat_map(|parcel| &parcel.load.messages);
            let stored = messages.zip(&msg_ids).filter(|(_, msg_id)| msg_id.is_ok());
            changes.sent(&rider.queue, stored.map(|(message, _)| message.schedule()));
            let mut verdicts = msg_ids.into_iter().map(|msg_id| msg_id.map(newly_sent));
            for parcel in rider.plain.drain(..) {
                let verdicts = verdicts.by_ref().take(parcel.load.items()).collect();
                parcel.answer(Ok(verdicts));
            }
        }
        changes.tell(&self.means.events);
    }
}

/// Riders that go together: no more than one lane may have in a flush, for that long the others wait.
fn portions(riders: Vec<Rider>) -> Vec<Vec<Rider>> {
    let (mut portions, mut items, mut bytes) = (vec![Vec::new()], 0, 0);
    for rider in riders {
        let (more_items, more_bytes) = rider.size();
        let is_full = items + more_items > MAX_FLUSH_ITEMS || bytes + more_bytes > MAX_FLUSH_BYTES;
        match portions.last_mut() {
            Some(last) if last.is_empty() || !is_full => last.push(rider),
            _ => {
                portions.push(vec![rider]);
                (items, bytes) = (0, 0);
            }
        }
        (items, bytes) = (items + more_items, bytes + more_bytes);
    }
    portions
}

fn parts(riders: &[Rider]) -> Vec<GroupPart<'_>> {
    riders
        .iter()
        .map(|rider| GroupPart {
            queue: &rider.queue,
            messages: rider.plain.iter().flat_map(|parcel| &parcel.load.messages).collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::sends::Sending;
    use super::*;
    use crate::domain::{OutgoingMessage, Schedule};
    use crate::engine::merge::Parcel;

    /// A rider with so many messages of so many bytes.
    fn rider(items: usize, bytes: usize) -> Rider {
        let queue = QueueName::try_from("orders".to_owned()).expect("a name");
        let body = format!("\"{}\"", "x".repeat(bytes));
        let message = || {
            let schedule = Schedule::AfterMillis(0);
            OutgoingMessage::parse(body.clone(), String::new(), "", schedule, 2 * MAX_FLUSH_BYTES)
        };
        let messages = (0..items).map(|_| message().expect("a message")).collect();
        let (_, sending) = Sending::alone(queue.clone(), messages);
        let (parcel, _) = Parcel::new(sending, None);
        Rider::new(queue, vec![parcel], false).0
    }

    fn sizes(riders: Vec<Rider>) -> Vec<usize> {
        portions(riders).iter().map(Vec::len).collect()
    }

    #[test]
    fn as_many_go_together_as_one_flush_may_take() {
        assert_eq!(sizes((0..128).map(|_| rider(1, 20)).collect()), [128]);
        let half = MAX_FLUSH_ITEMS / 2;
        assert_eq!(sizes(vec![rider(half, 1), rider(half, 1), rider(1, 1), rider(half, 1)]), [2, 2]);
        let much = MAX_FLUSH_BYTES / 2 - 1_024;
        assert_eq!(sizes(vec![rider(1, much), rider(1, much), rider(1, much)]), [2, 1]);
        assert_eq!(sizes(vec![rider(1, MAX_FLUSH_BYTES + 1), rider(1, 1)]), [1, 1]);
    }
}

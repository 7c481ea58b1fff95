//! Sends of many queues, in one transaction.
//!
//! Where a thousand queues are in use, a flush of each holds a message or two, and a commit for each would cost more than
//! everything else. So plain lanes join in groups. Whatever hurts a group is taken back with it; the others go again without
//! the one that is to be blamed, which goes alone and for the next while keeps to itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::sends::{SendParcel, Store, by_ids};
use super::settles::{FLUSH_TIME, failure};
use crate::domain::{Deadline, Error, Kind, QueueName, Result, Sent};
use crate::engine::Changes;
use crate::engine::merge::{Lead, Load, MAX_FLUSH_BYTES, MAX_FLUSH_ITEMS, Seat, Share};
use crate::pg::{Connection, GroupFailure, GroupPart, GroupPatience, SLOW, StoredGroup, is_locked_table};
use crate::queue::budget::Held;

/// The most lanes that one leader takes along. Each takes four or five of the database's locks.
const MOST_FOLLOWERS: usize = 95;

/// How long a queue's insert may wait for a lock, and take, while the other queues wait for it.
const PATIENCE: GroupPatience =
    GroupPatience { lock: Duration::from_millis(20), time: Duration::from_millis(100) };

/// The same once another one was waited for in vain.
const LITTLE_PATIENCE: GroupPatience =
    GroupPatience { lock: Duration::from_millis(1), time: Duration::from_millis(20) };

/// The same for a queue that goes by itself, until it is known to be slow.
const PATIENCE_APART: GroupPatience = GroupPatience { lock: LITTLE_PATIENCE.lock, time: SLOW };

/// The same for one that is known to be slow.
const PATIENCE_WITH_SLOW: GroupPatience = GroupPatience { lock: LITTLE_PATIENCE.lock, time: FLUSH_TIME };

/// For how long a queue is tried whose table is locked.
const LONGEST: Duration = Duration::from_secs(2);

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// For how long the queues of a group are taken out one by one that are to be blamed.
const SEARCH: Duration = Duration::from_secs(1);

/// So many inserts in a row that have taken too long are no queue's fault, but the database's or the machine's.
const NOBODYS_FAULT: u32 = 2;

/// A leader that has so many messages of its own takes nobody along: they would wait for all of these.
const LARGE: usize = 256;

/// How long a queue keeps to itself that has hurt a group.
const APART: Duration = Duration::from_secs(10);

/// What a flush has before it takes its parcels.
pub(super) enum Open {
    /// A connection for itself.
    Alone(Share, Connection),
    /// A connection for itself, because its queue has hurt others lately.
    Apart(OpenApart),
    /// A connection, and the right to take others along.
    Leads(Lead<Rider>, Share, Connection),
    /// A place in another's group.
    Follows(Seat<Rider>),
}

/// What a lane that keeps to itself has while it tries.
pub(super) struct OpenApart {
    /// One of the few for queues that are apart and not known to be slow.
    turn: Option<OwnedSemaphorePermit>,
    _share: Share,
    connection: Connection,
}

impl OpenApart {
    fn is_slow(&self) -> bool {
        self.turn.is_none()
    }
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

    /// Tells the senders of all messages without deduplication ids the same.
    fn answer_plain(&mut self, error: &Error) {
        for parcel in self.plain.drain(..) {
            let verdicts = vec![Err(error.clone()); parcel.load.items()];
            parcel.answer(Ok(verdicts));
        }
    }

    /// Tells everybody the same.
    fn refuse(self, error: &Error) {
        let parcels = self.plain.into_iter().chain(self.with_ids);
        parcels.for_each(|parcel| parcel.answer(Err(error.clone())));
        let _ = self.done.send(Some(error.clone()));
    }

    /// How many messages without deduplication ids it has, and their bytes.
    fn size(&self) -> (usize, usize) {
        let loads = self.plain.iter().map(|parcel| (parcel.load.items(), parcel.load.bytes()));
        loads
            .fold((0, 0), |(items, bytes), (more_items, more_bytes)| (items + more_items, bytes + more_bytes))
    }

    /// The bytes of all its messages.
    fn bytes(&self) -> usize {
        self.plain.iter().chain(&self.with_ids).map(|parcel| parcel.load.bytes()).sum()
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

    pub(super) fn put<'a>(&self, hurtful: impl IntoIterator<Item = &'a QueueName>) {
        let now = Instant::now();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, until| now < *until);
        queues.extend(hurtful.into_iter().map(|queue| (queue.clone(), now + APART)));
    }
}

impl Store {
    /// Inserts a lane's parcels, and those of the lanes that it takes along.
    pub(super) async fn lead(
        self: &Arc<Self>,
        mut lead: Lead<Rider>,
        share: Share,
        connection: Connection,
        rider: Rider,
    ) {
        let (own_items, own_bytes) = rider.size();
        let is_enough = |brought: &[Rider]| {
            let sizes = brought.iter().map(Rider::size);
            let (items, bytes) =
                sizes.fold((own_items, own_bytes), |(items, bytes), more| (items + more.0, bytes + more.1));
            items >= MAX_FLUSH_ITEMS || bytes >= MAX_FLUSH_BYTES
        };
        let mut riders = match own_items < LARGE {
            true => lead.gather(MOST_FOLLOWERS, is_enough).await,
            false => Vec::new(),
        };
        if riders.is_empty() {
            lead.during(self.store_alone(connection, rider)).await;
            return;
        }
        riders.push(rider);
        let store = Arc::clone(self);
        // Each lane goes on as soon as it was answered, the leader's own too.
        self.tasks.spawn(async move {
            let _share = share;
            store.store_riders(lead, connection, riders).await;
        });
    }

    async fn store_riders(
        self: Arc<Self>,
        mut lead: Lead<Rider>,
        mut connection: Connection,
        riders: Vec<Rider>,
    ) {
        let mut left = Vec::new();
        for riders in portions(riders) {
            connection = lead.during(self.store_group(connection, riders, &mut left)).await;
        }
        lead.pass_on();
        for rider in left {
            connection = self.store_alone(connection, rider).await;
        }
    }

    /// Inserts the parcels of lanes in one transaction. What is not stored then, and hurts nobody, is left.
    async fn store_group(
        self: &Arc<Self>,
        mut connection: Connection,
        mut riders: Vec<Rider>,
        left: &mut Vec<Rider>,
    ) -> Connection {
        // Two groups, or a group and somebody's transaction, lock tables and rows in one order.
        riders.sort_by(|one, other| one.queue.cmp(&other.queue));
        let (mut together, others): (Vec<Rider>, Vec<Rider>) =
            riders.into_iter().partition(|rider| rider.size().0 > 0);
        left.extend(others);
        let (mut patience, until, mut late) = (PATIENCE, Instant::now() + SEARCH, 0);
        while together.len() > 1 {
            connection.set_deadline(Deadline::within(FLUSH_TIME));
            match connection.send_group(&parts(&together), patience).await {
                Ok(stored) => {
                    self.stored(&mut together, stored);
                    finish(together.drain(..), left);
                }
                Err(GroupFailure { error, culprit }) if error.kind() == Kind::OutcomeUnknown => {
                    self.apart.put(culprit.map(|culprit| &together[culprit].queue));
                    together.iter_mut().for_each(|rider| rider.answer_plain(&error));
                    finish(together.drain(..), left);
                }
                Err(GroupFailure { error, culprit }) => {
                    late = if error.kind() == Kind::DeadlineExceeded { late + 1 } else { 0 };
                    let is_searched = Instant::now() < until && late <= NOBODYS_FAULT;
                    match culprit.filter(|_| is_searched && concerns_one(&error) && !connection.is_spoilt()) {
                        Some(_) if late == NOBODYS_FAULT => patience = PATIENCE,
                        Some(culprit) => {
                            let culprit = together.remove(culprit);
                            let queue = culprit.queue.as_str();
                            tracing::debug!(queue, %error, "a queue's sends have failed with those of others");
                            self.apart.put([&culprit.queue]);
                            self.send_apart(culprit);
                            // Who is locked with it, as by one migration, or as slow, is found soon.
                            patience = LITTLE_PATIENCE;
                        }
                        // Whoever is to blame: alone each hears of it.
                        None => together.drain(..).for_each(|rider| self.send_apart(rider)),
                    }
                }
            }
        }
        left.append(&mut together);
        connection
    }

    /// Inserts a lane's parcels by itself, for which nobody else waits.
    fn send_apart(self: &Arc<Self>, rider: Rider) {
        let store = Arc::clone(self);
        self.tasks.spawn(async move { store.store_apart(None, rider).await });
    }

    /// A connection for a lane that keeps to itself. The queue's own share comes first: who waits for that keeps no other from
    /// the few turns.
    pub(super) async fn connect_apart(&self, queue: &QueueName, is_slow: bool) -> Result<OpenApart> {
        let share = self.shares.take(queue).await;
        let turn = match is_slow {
            true => None,
            // It may have become known meanwhile.
            false => {
                let turn = Arc::clone(&self.turns_apart).acquire_owned().await.ok();
                turn.filter(|_| !self.is_slow(queue))
            }
        };
        Ok(OpenApart { turn, _share: share, connection: self.connect_for(queue).await? })
    }

    /// The same for parcels that are on their way, and count in memory from then on.
    async fn connect_again(
        &self,
        rider: &Rider,
        is_slow: bool,
        memory: &mut Option<Held>,
    ) -> Result<OpenApart> {
        if memory.is_none() {
            *memory = Some(self.means.budget.take(rider.bytes())?);
        }
        self.connect_apart(&rider.queue, is_slow).await
    }

    /// Inserts the parcels of a lane that has hurt others, over one of a few connections: the rest of the pool is left to the
    /// others, however many do the same. While its table is locked it is tried again, and between the tries it has none. Once
    /// it has turned out to be slow, it leaves those few to those that are not, and waits among the slow ones for another.
    pub(super) async fn store_apart(&self, mut open: Option<OpenApart>, mut rider: Rider) {
        let (mut is_slow, mut memory, mut until) = (self.is_slow(&rider.queue), None, None);
        loop {
            let opened = match open.take() {
                Some(opened) => Ok(opened),
                None => self.connect_again(&rider, is_slow, &mut memory).await,
            };
            let mut opened = match opened {
                Ok(opened) => opened,
                Err(error) => return rider.refuse(&error),
            };
            // The wait for the connection is none for the lock.
            let until = *until.get_or_insert_with(|| Instant::now() + LONGEST);
            is_slow = opened.is_slow();
            match self.try_apart(&mut opened.connection, &mut rider, is_slow).await {
                Tried::Told => {
                    self.store_alone(opened.connection, rider).await;
                    return;
                }
                Tried::IsSlow => {
                    is_slow = true;
                    continue;
                }
                Tried::IsLocked(error) if Instant::now() >= until => return rider.refuse(&error),
                Tried::IsLocked(_) => self.apart.put([&rider.queue]),
            }
            drop(opened);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tries to insert a lane's parcels with hardly any patience for locks, and none for what takes long unless it is known to
    /// be slow. What is not stored for another reason is still the rider's.
    async fn try_apart(&self, connection: &mut Connection, rider: &mut Rider, is_slow: bool) -> Tried {
        if rider.size().0 == 0 {
            return Tried::Told;
        }
        let patience = if is_slow { PATIENCE_WITH_SLOW } else { PATIENCE_APART };
        let part = std::slice::from_mut(rider);
        match connection.send_group(&parts(part), patience).await {
            Ok(stored) => self.stored(part, stored),
            Err(GroupFailure { error, .. }) if error.kind() == Kind::OutcomeUnknown => {
                rider.answer_plain(&error);
            }
            Err(GroupFailure { error, .. }) if is_locked_table(&error) => return Tried::IsLocked(error),
            Err(GroupFailure { error, .. }) if error.kind() == Kind::DeadlineExceeded => {
                if !is_slow {
                    connection.found_slow();
                    return Tried::IsSlow;
                }
                rider.answer_plain(&failure(error).error);
            }
            Err(_) => {}
        }
        Tried::Told
    }

    /// Answers what a group has stored.
    fn stored(&self, riders: &mut [Rider], StoredGroup { parts, slow }: StoredGroup) {
        if !slow.is_empty() {
            let queues: Vec<&QueueName> = slow.iter().map(|place| &riders[*place].queue).collect();
            tracing::debug!(?queues, "queues have held up others, and keep to themselves for a while");
            self.apart.put(queues);
        }
        let mut changes = Changes::default();
        for (rider, msg_ids) in riders.iter_mut().zip(parts) {
            let messages = rider.plain.iter().flat_map(|parcel| &parcel.load.messages);
            let stored = messages.zip(&msg_ids).filter(|(_, msg_id)| msg_id.is_ok());
            changes.sent(&rider.queue, stored.map(|(message, _)| message.schedule()));
            let mut verdicts = msg_ids.into_iter().map(|msg_id| msg_id.map(Sent::now));
            for parcel in rider.plain.drain(..) {
                let verdicts = verdicts.by_ref().take(parcel.load.items()).collect();
                parcel.answer(Ok(verdicts));
            }
        }
        changes.tell(&self.means.events);
    }
}

/// What came of a try to insert a lane's parcels.
enum Tried {
    /// They are stored, or what is left does not fail for its time or a lock.
    Told,
    /// They take too long to be tried so.
    IsSlow,
    /// Their table is locked.
    IsLocked(Error),
}

/// Tells the lanes of which all is answered; the others are left.
fn finish(riders: impl Iterator<Item = Rider>, left: &mut Vec<Rider>) {
    for rider in riders {
        if rider.with_ids.is_empty() {
            let _ = rider.done.send(None);
        } else {
            left.push(rider);
        }
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

/// Whether a failure is that of one queue, and not one that any other would meet as well.
fn concerns_one(error: &Error) -> bool {
    !matches!(error.kind(), Kind::StorageFull | Kind::DatabaseResources | Kind::DatabaseUnavailable)
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

    #[tokio::test(start_paused = true)]
    async fn a_queue_keeps_to_itself_for_a_while() {
        let queue = QueueName::try_from("orders".to_owned()).expect("a name");
        let other = QueueName::try_from("others".to_owned()).expect("a name");
        let apart = Apart::default();
        assert!(!apart.holds(&queue));
        apart.put([&queue]);
        assert!(apart.holds(&queue) && !apart.holds(&other));
        tokio::time::sleep(APART / 2).await;
        apart.put([&other]);
        tokio::time::sleep(APART / 2).await;
        assert!(!apart.holds(&queue) && apart.holds(&other));
        // What is over is forgotten.
        apart.put([]);
        assert_eq!(apart.0.lock().expect("no panic").len(), 1);
    }
}

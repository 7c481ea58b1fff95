//! Messages of many callers for one queue, in one insert.
//!
//! Messages with deduplication ids go in inserts of their own, for others' transactions can hold an id. The insert waits
//! for those hardly at all: what is held is found by halves, leaves the flush, and is looked after by itself
//! (`held.rs`), with what its sender handed in behind it. A stream that has begun without ids keeps to its lane when it
//! comes to them, and such a flush makes two inserts.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::SentParcel;
use super::groups::{Apart, Open, Rider};
use super::held::{HeldParcel, Keeper, Means};
use super::lines::{Line, Place, SendLines};
use super::settles::{FLUSH_TIME, failure};
use crate::domain::{Deadline, DeduplicationId, Error, Kind, OutgoingMessage, QueueName, Result, Sent};
use crate::engine::merge::{Attempt, Blame, Failure, Groups, Load, Merge, Parcel, Role, Shares, bisect};
use crate::engine::{Changes, Events};
use crate::pg::{Connection, Database, KeyPatience, is_locked_table};
use crate::queue::{Budget, OnConnection, Send};

/// The operation as the pool knows it.
pub(super) const SEND: &str = <Send as OnConnection>::NAME;

/// How many attempts of a flush may fail because of held ids, before all that is not stored is taken for held.
const MAX_SEARCH: usize = 32;

/// Which messages go in one insert.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SendLane {
    queue: QueueName,
    keyed: bool,
}

/// One caller's messages, in order.
pub(super) struct Sending {
    pub(super) messages: Vec<OutgoingMessage>,
    /// The line that they keep to.
    line: Option<Arc<Line>>,
}

impl Sending {
    /// A single call's messages, and where they are handed in.
    pub(super) fn alone(queue: QueueName, messages: Vec<OutgoingMessage>) -> (SendLane, Self) {
        let keyed = messages.iter().any(|message| message.deduplication_id().is_some());
        (SendLane { queue, keyed }, Self { messages, line: None })
    }

    /// A stream's messages, and where they are handed in.
    pub(super) fn in_line(
        place: Place,
        queue: QueueName,
        messages: Vec<OutgoingMessage>,
    ) -> (SendLane, Self) {
        (SendLane { queue, keyed: place.keyed }, Self { messages, line: Some(place.line) })
    }
}

pub(super) type SendParcel = Parcel<Sending, SentParcel>;

impl Load for Sending {
    fn items(&self) -> usize {
        self.messages.len()
    }

    fn bytes(&self) -> usize {
        self.messages.iter().map(OutgoingMessage::held_bytes).sum()
    }
}

/// Inserts what gathers.
pub(super) struct Sends {
    store: Arc<Store>,
    /// Plain lanes in one transaction, where there are many.
    groups: Arc<Groups<Rider>>,
}

/// What inserts need.
pub(super) struct Store {
    pub(super) means: Arc<Means>,
    pub(super) shares: Arc<Shares>,
    /// What is held of the callers who keep to no line, one crowd a queue.
    crowds: Mutex<SendLines>,
    pub(super) tasks: TaskTracker,
    pub(super) apart: Apart,
    /// The connections of queues that are apart.
    pub(super) turns_apart: Arc<Semaphore>,
}

impl Sends {
    /// Held messages take so many bytes and connections at most; so many connections are meant for the plain lanes of all
    /// queues.
    pub(super) fn new(
        database: Database,
        events: Events,
        shares: Arc<Shares>,
        (held_bytes, connections): (usize, usize),
        groups: usize,
        tasks: TaskTracker,
    ) -> Self {
        let turns = Semaphore::new(connections.max(1));
        let means = Means { database, events, budget: Budget::new(held_bytes), turns };
        let (means, crowds, apart) = (Arc::new(means), Mutex::default(), Apart::default());
        let turns_apart = Arc::new(Semaphore::new(groups.max(1)));
        let store = Arc::new(Store { means, shares, crowds, tasks, apart, turns_apart });
        Self { store, groups: Groups::new(groups) }
    }
}

impl Store {
    /// Puts a parcel aside until its ids are free; what has no verdict yet gets one then.
    fn hold(&self, queue: &QueueName, parcel: SendParcel, verdicts: Vec<Option<Result<Sent>>>) {
        let bytes = parcel.load.bytes();
        let (Sending { messages, line }, caller) = parcel.open();
        let memory = match self.means.budget.take(bytes) {
            Ok(memory) => memory,
            Err(error) => {
                let refused = |verdict: Option<_>| verdict.unwrap_or_else(|| Err(error.clone()));
                return caller.answer(Ok(verdicts.into_iter().map(refused).collect()));
            }
        };
        let in_order = line.is_some();
        let line = line.unwrap_or_else(|| {
            let mut crowds = self.crowds.lock().unwrap_or_else(PoisonError::into_inner);
            crowds.line(queue)
        });
        if line.hold(HeldParcel::new(messages, verdicts, caller, memory)) {
            let keeper = Keeper { means: Arc::clone(&self.means), queue: queue.clone(), line, in_order };
            self.tasks.spawn(keeper.run());
        }
    }

    /// A connection for a group.
    async fn connect(&self) -> Result<Connection> {
        prepared(self.means.database.connect(SEND, Deadline::within(FLUSH_TIME)).await?).await
    }

    /// A connection for one queue, which has a share.
    pub(super) async fn connect_for(&self, queue: &QueueName) -> Result<Connection> {
        let deadline = Deadline::within(FLUSH_TIME);
        prepared(self.means.database.connect_for(SEND, queue.as_str(), deadline).await?).await
    }

    /// Whether inserts into a queue are known to take long.
    pub(super) fn is_slow(&self, queue: &QueueName) -> bool {
        self.means.database.is_slow(SEND, queue.as_str())
    }

    /// Puts aside what is behind something held, and gives the rest.
    fn without_held(&self, queue: &QueueName, parcels: Vec<SendParcel>) -> Vec<SendParcel> {
        let (parcels, behind) = behind_held(parcels);
        for parcel in behind {
            let verdicts = vec![None; parcel.load.items()];
            self.hold(queue, parcel, verdicts);
        }
        parcels
    }

    /// Inserts one lane's parcels, and tells its lane.
    pub(super) async fn store_alone(&self, mut connection: Connection, rider: Rider) -> Connection {
        let Rider { queue, keyed, plain, with_ids, done } = rider;
        connection.set_deadline(Deadline::within(FLUSH_TIME));
        connection.goes_on_for(SEND, queue.as_str());
        let (connection, locked) = self.store(&queue, connection, plain, None).await;
        if let Some(error) = locked {
            self.apart.put([&queue]);
            with_ids.into_iter().for_each(|parcel| parcel.answer(Err(error.clone())));
            let _ = done.send(Some(error));
            return connection;
        }
        let (connection, locked) = self.store(&queue, connection, with_ids, Some(KeyPatience::Brief)).await;
        // What is locked may be the table of ids, and the others of a plain lane need none.
        let _ = done.send(locked.filter(|_| keyed));
        connection
    }

    /// Inserts parcels, with a look at deduplication ids if it has patience for them, and answers all that are not held.
    /// Gives the error if the queue's table was locked.
    async fn store(
        &self,
        queue: &QueueName,
        connection: Connection,
        parcels: Vec<SendParcel>,
        patience: Option<KeyPatience>,
    ) -> (Connection, Option<Error>) {
        let lines = lines(&parcels);
        let messages: Vec<(usize, &OutgoingMessage)> = parcels
            .iter()
            .zip(lines)
            .flat_map(|(parcel, line)| parcel.load.messages.iter().map(move |message| (line, message)))
            .collect();
        if messages.is_empty() {
            return (connection, None);
        }
        let mut insert = Insert::new(connection, queue, patience, MAX_SEARCH);
        let verdicts = told(bisect(&messages, &mut insert).await, &messages);
        let stored = messages.iter().zip(&verdicts).filter(|(_, verdict)| matches!(verdict, Some(Ok(_))));
        let mut changes = Changes::default();
        changes.sent(queue, stored.map(|((_, message), _)| message.schedule()));
        changes.tell(&self.means.events);
        let mut errors = verdicts.iter().flatten().filter_map(|verdict| verdict.as_ref().err());
        let locked = errors.find(|error| is_locked_table(error)).cloned();
        let connection = insert.connection;
        let mut verdicts = verdicts.into_iter();
        for parcel in parcels {
            let count = parcel.load.items();
            let is_told = verdicts.as_slice().iter().take(count).all(Option::is_some);
            let verdicts = verdicts.by_ref().take(count);
            match is_told {
                true => parcel.answer(Ok(verdicts.flatten().collect())),
                false => self.hold(queue, parcel, verdicts.collect()),
            }
        }
        (connection, locked)
    }
}

/// A connection that may be the first one to another database.
pub(super) async fn prepared(mut connection: Connection) -> Result<Connection> {
    connection.learn_policies().await?;
    connection.set_deadline(Deadline::within(FLUSH_TIME));
    Ok(connection)
}

impl Merge for Sends {
    type Lane = SendLane;
    type Load = Sending;
    type Answer = SentParcel;
    type Open = Open;
    type Picked = ();

    async fn open(&self, lane: &SendLane) -> Result<Open> {
        if lane.keyed {
            let share = self.store.shares.take(&lane.queue).await;
            return Ok(Open::Alone(share, self.store.connect_for(&lane.queue).await?));
        }
        let is_slow = self.store.is_slow(&lane.queue);
        if is_slow || self.store.apart.holds(&lane.queue) {
            return Ok(Open::Apart(self.store.connect_apart(&lane.queue, is_slow).await?));
        }
        let mut lead = match self.groups.join().await? {
            Role::Follower(seat) => return Ok(Open::Follows(seat)),
            Role::Leader(lead) => lead,
        };
        // Others may lead while this one waits for what its own queue does, but not while it waits for the pool: each
        // would wait there for a connection of its own.
        let share = lead.during(self.store.shares.take(&lane.queue)).await;
        match self.store.connect().await {
            Ok(connection) => Ok(Open::Leads(lead, share, connection)),
            Err(error) => {
                lead.refuse_waiting(&error);
                Err(error)
            }
        }
    }

    async fn flush(
        &self,
        SendLane { queue, keyed }: &SendLane,
        open: Open,
        parcels: Vec<SendParcel>,
    ) -> Option<Error> {
        let (rider, told) = Rider::new(queue.clone(), self.store.without_held(queue, parcels), *keyed);
        match open {
            Open::Alone(_share, connection) => {
                self.store.store_alone(connection, rider).await;
            }
            Open::Apart(open) => self.store.store_apart(Some(open), rider).await,
            Open::Leads(lead, share, connection) => self.store.lead(lead, share, connection, rider).await,
            Open::Follows(seat) => seat.bring(rider),
        }
        told.await.ok().flatten()
    }
}

/// The parcels that may be stored now, and those behind something that is held of their lines. Each line is asked once: it
/// may become free meanwhile, and its second parcel must not overtake the first.
fn behind_held(parcels: Vec<SendParcel>) -> (Vec<SendParcel>, Vec<SendParcel>) {
    let mut held = HashMap::new();
    parcels.into_iter().partition(|parcel| match &parcel.load.line {
        Some(line) => !*held.entry(Arc::as_ptr(line)).or_insert_with(|| line.is_held()),
        None => true,
    })
}

/// The parcels of those who sent no deduplication ids, and of those who did.
pub(super) fn by_ids(parcels: Vec<SendParcel>) -> (Vec<SendParcel>, Vec<SendParcel>) {
    let line_of = |parcel: &SendParcel| parcel.load.line.as_ref().map(Arc::as_ptr);
    let has_ids = |parcel: &&SendParcel| {
        parcel.load.messages.iter().any(|message| message.deduplication_id().is_some())
    };
    // Only a stream has ids here.
    let with_ids: HashSet<_> =
        parcels.iter().filter(|parcel| parcel.load.line.is_some()).filter(has_ids).map(line_of).collect();
    parcels.into_iter().partition(|parcel| !with_ids.contains(&line_of(parcel)))
}

/// The number of each parcel's line: what one sender handed in has one.
fn lines(parcels: &[SendParcel]) -> Vec<usize> {
    let mut first = HashMap::new();
    let of_each = parcels.iter().enumerate().map(|(place, parcel)| match &parcel.load.line {
        Some(line) => *first.entry(Arc::as_ptr(line)).or_insert(place),
        None => place,
    });
    of_each.collect()
}

/// Inserts messages, each with the number of its line.
pub(super) struct Insert<'a> {
    connection: Connection,
    queue: &'a QueueName,
    /// For messages with deduplication ids.
    patience: Option<KeyPatience>,
    /// The lines of which something is held.
    held: HashSet<usize>,
    /// The ids that were found held.
    held_ids: HashSet<DeduplicationId>,
    /// How many more attempts may fail because of held ids.
    search: usize,
}

impl<'a> Insert<'a> {
    pub(super) fn new(
        connection: Connection,
        queue: &'a QueueName,
        patience: Option<KeyPatience>,
        search: usize,
    ) -> Self {
        Self { connection, queue, patience, held: HashSet::new(), held_ids: HashSet::new(), search }
    }

    /// Whether a message can be tried. What comes behind a held one of its line cannot.
    fn is_open(&mut self, &(line, message): &(usize, &OutgoingMessage)) -> bool {
        if message.deduplication_id().is_some_and(|id| self.held_ids.contains(id)) {
            self.held.insert(line);
        }
        !self.held.contains(&line)
    }
}

impl Attempt<(usize, &OutgoingMessage)> for Insert<'_> {
    /// Nothing of a message that is held or behind one.
    type Output = Option<Result<Sent>>;

    async fn attempt(&mut self, items: &[(usize, &OutgoingMessage)]) -> Result<Vec<Self::Output>, Failure> {
        let Some(patience) = self.patience else {
            let messages: Vec<&OutgoingMessage> = items.iter().map(|(_, message)| *message).collect();
            let msg_ids = self.connection.send(self.queue, &messages).await.map_err(failure)?;
            return Ok(msg_ids.into_iter().map(|msg_id| Some(Ok(Sent::now(msg_id)))).collect());
        };
        let is_open: Vec<bool> = items.iter().map(|item| self.is_open(item)).collect();
        let open = items.iter().zip(&is_open).filter(|(_, is_open)| **is_open);
        let messages: Vec<&OutgoingMessage> = open.map(|((_, message), _)| *message).collect();
        let stored = match messages.is_empty() {
            true => Vec::new(),
            false => self.connection.send_unheld(self.queue, &messages, patience).await.map_err(failure)?,
        };
        if messages.len() > 1 && stored.iter().all(Option::is_none) && self.search > 0 {
            self.search -= 1;
            // One wait was enough to tell who is held for longer.
            self.patience = Some(KeyPatience::None);
            return Err(Failure { error: Error::internal("a held deduplication id"), blame: Blame::Item });
        }
        if let [message] = messages[..]
            && stored.iter().all(Option::is_none)
        {
            self.held_ids.extend(message.deduplication_id().cloned());
        }
        let mut stored = stored.into_iter();
        let verdict_of = |is_open: bool| if is_open { stored.next().flatten() } else { None };
        let verdicts: Vec<Self::Output> = is_open.into_iter().map(verdict_of).collect();
        let without = items.iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_none());
        self.held.extend(without.map(|((line, _), _)| *line));
        Ok(verdicts)
    }
}

/// The verdicts of inserted messages; none of those that are held. One with a deduplication id can be sent again,
/// whatever else was in its statement.
pub(super) fn told(
    verdicts: Vec<Result<Option<Result<Sent>>>>,
    messages: &[(usize, &OutgoingMessage)],
) -> Vec<Option<Result<Sent>>> {
    let told = verdicts.into_iter().zip(messages).map(|(verdict, (_, message))| {
        let verdict = verdict.unwrap_or_else(|error| Some(Err(error)));
        match message.deduplication_id() {
            Some(_) => verdict.map(|verdict| verdict.map_err(retry_safe)),
            None => verdict,
        }
    });
    told.collect()
}

fn retry_safe(error: Error) -> Error {
    match error.kind() {
        Kind::OutcomeUnknown => {
            let why = "the connection to the database was lost; the message may have been stored, and repeating it is safe";
            error.reworded(Kind::OutcomeUnknownRetrySafe, why).retry_after(Duration::from_secs(1))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::future::poll_immediate;

    use super::*;
    use crate::config::DatabaseUrl;
    use crate::domain::Schedule;
    use crate::pg::PoolLimits;

    const BYTES: usize = 1_024;

    /// Sends to a database that nobody can reach. A queue has one flush at a time, and those that are apart one turn.
    fn sends() -> Sends {
        let url = DatabaseUrl::parse("postgres://somebody@127.0.0.1:1/nothing").expect("a URL");
        let limits = PoolLimits { connections: 4, waiting_calls: 4 };
        let database = Database::new(&url, limits, Duration::from_mins(5)).expect("a pool");
        let shares = Arc::new(Shares::new(1));
        Sends::new(database, Events::default(), shares, (BYTES, 1), 1, TaskTracker::new())
    }

    fn queue() -> QueueName {
        QueueName::try_from("orders".to_owned()).expect("a name")
    }

    #[tokio::test]
    async fn a_queue_that_is_apart_has_a_connection_before_its_parcels_and_takes_no_turn_while_it_waits_for_itself()
     {
        let sends = sends();
        sends.store.apart.put([&queue()]);
        let other_flush = sends.store.shares.take(&queue()).await;
        let lane = SendLane { queue: queue(), keyed: false };
        let mut open = pin!(sends.open(&lane));
        assert!(poll_immediate(open.as_mut()).await.is_none());
        assert_eq!(sends.store.turns_apart.available_permits(), 1);
        drop(other_flush);
        assert_eq!(open.await.err().map(|error| error.kind()), Some(Kind::DatabaseUnavailable));
    }

    #[tokio::test]
    async fn what_waits_for_a_connection_after_it_has_left_its_lane_is_bounded() {
        let sends = sends();
        let told = async || {
            let message =
                OutgoingMessage::parse("1".to_owned(), String::new(), "", Schedule::AfterMillis(0), BYTES);
            let (_, sending) = Sending::alone(queue(), vec![message.expect("a message")]);
            let (parcel, verdict) = Parcel::new(sending, None);
            sends.store.store_apart(None, Rider::new(queue(), vec![parcel], false).0).await;
            verdict.wait().await.expect_err("a refusal").kind()
        };
        assert_eq!(told().await, Kind::DatabaseUnavailable);
        let others = sends.store.means.budget.take(BYTES).expect("room");
        assert_eq!(told().await, Kind::Overloaded);
        drop(others);
        assert_eq!(told().await, Kind::DatabaseUnavailable);
    }
}

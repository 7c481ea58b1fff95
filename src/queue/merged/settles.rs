//! Settles of many callers for one queue, in one statement.
//!
//! The statement passes over rows that others have locked. For what it did not settle, a second one looks without
//! locking: a message that is gone or was read again is told so. What is left is locked by somebody, and goes back to its
//! caller, who hands it in again a little later: nobody waits for a lock with a connection in hand. Or a trigger swallows
//! what would be done to it: that shows when it is handed in again, for then the statement is one that takes itself back
//! where it has a row and does not change it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::dead_letter::{Cause, SetAside};
use crate::domain::message::Outcome;
use crate::domain::{Deadline, Error, Kind, QueueName, Receipt, Result, Settlement};
use crate::engine::merge::{Attempt, Blame, Failure, Load, Merge, Parcel, Share, Shares, bisect};
use crate::engine::{Changes, Events};
use crate::pg::{Connection, Database, FirstLook, Sight, is_locked_table, may_be_one_items_fault};
use crate::queue::settle::Targets;

/// How long a merged statement may take, and the wait for its connection. It is the server's own limit, because no
/// caller's deadline may end what strangers wait for.
pub(super) const FLUSH_TIME: Duration = Duration::from_secs(15);

/// What a settle counts against the limits: its place in the arrays and its caller.
const HELD_BYTES: usize = 128;

/// What is to become of messages, and who is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// They are deleted.
    Delete,
    /// They move to the archive.
    Archive,
    /// They become visible, and no longer belong to who held them. Those that were handed over as often as the queue's policy
    /// allows move to its dead-letter queue instead.
    Release {
        /// Milliseconds from now; none as the policy says.
        delay_ms: Option<i64>,
    },
    /// They become visible at once, as if they had not been read.
    GiveBack,
    /// They move to the dead-letter queue.
    DeadLetter(Cause),
    /// They become visible at another time.
    Reschedule(Settlement),
}

impl Change {
    /// Whether a repeat ends in the same state: a change of visibility by ids can concern another's delivery.
    pub(super) fn may_be_repeated(&self, targets: &Targets) -> bool {
        matches!(targets, Targets::Receipts(_)) || matches!(self, Self::Delete | Self::Archive)
    }
}

/// What a statement does with one caller's targets.
pub(super) enum Deed {
    /// The same to each.
    Settle(Settlement),
    /// Each becomes visible after its own number of milliseconds, and no longer belongs to who held it.
    Release(Vec<i64>),
    /// Each becomes visible as if it had not been read.
    GiveBack,
    /// Each moves to the dead-letter queue.
    DeadLetter(Cause),
}

impl Deed {
    fn settlement(&self, place: usize) -> Settlement {
        match self {
            Self::Settle(settlement) => *settlement,
            Self::Release(delays_ms) => Settlement::VisibleAfterMillis(delays_ms[place]),
            // They have statements of their own.
            Self::GiveBack | Self::DeadLetter(_) => Settlement::Delete,
        }
    }

    /// Says what has changed; `to` is the dead-letter queue.
    fn tell(
        &self,
        changes: &mut Changes,
        queue: &QueueName,
        to: Option<&QueueName>,
        targets: &Targets,
        looks: &[FirstLook],
    ) {
        let done = |place: usize| matches!(looks.get(place), Some(FirstLook::Told(result)) if result.outcome == Outcome::Done);
        let places = 0..looks.len();
        if !places.clone().any(done) {
            return;
        }
        let done = places.filter(|&place| done(place));
        match (self, targets) {
            (Self::Settle(Settlement::Delete | Settlement::Archive), targets) => {
                changes.settled(queue, done.map(|place| targets.msg_id(place)));
            }
            (Self::DeadLetter(_), targets) => {
                let msg_ids = done.map(|place| targets.msg_id(place)).collect();
                changes.set_aside(queue, &SetAside { to: to.cloned(), msg_ids });
            }
            (Self::Release(delays_ms), Targets::Receipts(receipts)) => {
                changes.released(queue, done.map(|place| (receipts[place], delays_ms[place])));
            }
            (Self::GiveBack, Targets::Receipts(receipts)) => {
                changes.released(queue, done.map(|place| (receipts[place], 0)));
            }
            // Nobody has to look for what is not there for longer, and who counts on it asks the database anyway.
            (Self::Settle(Settlement::HiddenForMillis(_)), _) => {}
            (Self::Settle(Settlement::VisibleAfterMillis(millis)), _) => {
                changes.rescheduled_for(queue, *millis);
            }
            (Self::Release(_) | Self::GiveBack | Self::Settle(_), _) => changes.rescheduled(queue),
        }
    }
}

/// Which settles go in one statement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SettleLane {
    queue: QueueName,
    action: Action,
    by_receipt: bool,
    sight: Sight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Delete,
    Archive,
    SetVisibility,
    GiveBack,
    DeadLetter,
}

impl Action {
    /// The operation as the pool knows it.
    fn name(self) -> &'static str {
        match self {
            Self::Delete => "settle_by_delete",
            Self::Archive => "settle_by_archive",
            Self::SetVisibility => "settle_by_visibility",
            Self::GiveBack => "settle_by_give_back",
            Self::DeadLetter => "settle_by_dead_letter",
        }
    }
}

impl SettleLane {
    pub(super) fn of(queue: QueueName, targets: &Targets, deed: &Deed, sight: Sight) -> Self {
        let action = match deed {
            Deed::Settle(Settlement::Delete) => Action::Delete,
            Deed::Settle(Settlement::Archive) => Action::Archive,
            Deed::Settle(_) | Deed::Release(_) => Action::SetVisibility,
            Deed::GiveBack => Action::GiveBack,
            Deed::DeadLetter(_) => Action::DeadLetter,
        };
        Self { queue, action, by_receipt: matches!(targets, Targets::Receipts(_)), sight }
    }
}

/// One caller's distinct targets, and what is to become of them.
pub(super) struct Wanted {
    pub(super) targets: Targets,
    pub(super) deed: Deed,
}

impl Load for Wanted {
    fn items(&self) -> usize {
        self.targets.len()
    }

    fn bytes(&self) -> usize {
        HELD_BYTES * self.targets.len()
    }
}

/// What became of one caller's targets.
pub(super) struct Looked {
    pub(super) wanted: Wanted,
    pub(super) looks: Vec<FirstLook>,
}

/// Settles what gathers.
pub(super) struct Settles {
    database: Database,
    events: Events,
    shares: Arc<Shares>,
}

impl Settles {
    pub(super) fn new(database: Database, events: Events, shares: Arc<Shares>) -> Self {
        Self { database, events, shares }
    }
}

impl Merge for Settles {
    type Lane = SettleLane;
    type Load = Wanted;
    type Answer = Looked;
    type Open = (Share, Connection);
    /// The messages of the flush: a second settle of one waits for the next flush, and finds what the first has done.
    type Picked = HashSet<i64>;

    fn goes_with(picked: &mut HashSet<i64>, wanted: &Wanted) -> bool {
        let msg_ids = || (0..wanted.targets.len()).map(|place| wanted.targets.msg_id(place));
        let is_new = !msg_ids().any(|msg_id| picked.contains(&msg_id));
        picked.extend(msg_ids());
        is_new
    }

    async fn open(&self, lane: &SettleLane) -> Result<Self::Open> {
        let share = self.shares.take(&lane.queue).await;
        let (operation, deadline) = (lane.action.name(), Deadline::within(FLUSH_TIME));
        let mut connection = self.database.connect_for(operation, lane.queue.as_str(), deadline).await?;
        // It may be the first one to another database.
        connection.learn_policies().await?;
        connection.set_deadline(Deadline::within(FLUSH_TIME));
        Ok((share, connection))
    }

    async fn flush(
        &self,
        lane: &SettleLane,
        (share, connection): Self::Open,
        parcels: Vec<Parcel<Wanted, Looked>>,
    ) -> Option<Error> {
        let wanted: Vec<&Wanted> = parcels.iter().map(|parcel| &parcel.load).collect();
        let mut first = First { connection, lane, dead_letter_queue: None };
        let mut looks = bisect(&wanted, &mut first).await;
        look_closer(&mut first, &wanted, &mut looks).await;
        let to = first.dead_letter_queue.take();
        drop((first, share));
        // Once for all callers, because each tale goes to every stream of the queue.
        let mut changes = Changes::default();
        for (wanted, looks) in wanted.iter().zip(&looks) {
            if let Ok(looks) = looks {
                wanted.deed.tell(&mut changes, &lane.queue, to.as_ref(), &wanted.targets, looks);
            }
        }
        changes.tell(&self.events);
        let mut errors = looks.iter().filter_map(|looks| looks.as_ref().err());
        let locked = errors.find(|error| is_locked_table(error)).cloned();
        for (parcel, looks) in parcels.into_iter().zip(looks) {
            let (wanted, parcel) = parcel.open();
            parcel.answer(looks.map(|looks| Looked { wanted, looks }));
        }
        locked
    }
}

/// The statement that settles what nobody has locked, for whole callers: each one's targets succeed or fail together.
struct First<'a> {
    connection: Connection,
    lane: &'a SettleLane,
    /// Where dead letters went.
    dead_letter_queue: Option<QueueName>,
}

impl First<'_> {
    /// Moves messages to the dead-letter queue, whichever that is now.
    async fn dead_letter(&mut self, wanted: &[&Wanted]) -> Result<Vec<FirstLook>> {
        let queue = &self.lane.queue;
        // Halves of a flush go where the whole was to go.
        if self.dead_letter_queue.is_none() {
            self.dead_letter_queue = Some(self.connection.dead_letter_queue(queue).await?);
        }
        let Some(to) = &self.dead_letter_queue else { return Ok(Vec::new()) };
        let mut receipts = Vec::new();
        let mut reasons = Vec::new();
        for wanted in wanted {
            receipts.extend(wanted.targets.receipts());
            let reason = if let Deed::DeadLetter(cause) = &wanted.deed { cause.reason() } else { "" };
            reasons.resize(receipts.len(), reason);
        }
        self.connection.dead_letter_unlocked(queue, to, &receipts, &reasons, 0, self.lane.sight).await
    }
}

impl Attempt<&Wanted> for First<'_> {
    type Output = Vec<FirstLook>;

    async fn attempt(&mut self, wanted: &[&Wanted]) -> Result<Vec<Vec<FirstLook>>, Failure> {
        let SettleLane { queue, sight, .. } = self.lane;
        let settlements = wanted
            .iter()
            .flat_map(|wanted| (0..wanted.targets.len()).map(|place| wanted.deed.settlement(place)));
        let settlements: Vec<Settlement> = settlements.collect();
        let receipts =
            || wanted.iter().flat_map(|wanted| wanted.targets.receipts()).collect::<Vec<&Receipt>>();
        let looks = if self.lane.action == Action::DeadLetter {
            self.dead_letter(wanted).await
        } else if self.lane.action == Action::GiveBack {
            self.connection.give_back_unlocked(queue, &receipts(), *sight).await
        } else if self.lane.by_receipt {
            self.connection.settle_unlocked(queue, &receipts(), &settlements, *sight).await
        } else {
            let msg_ids: Vec<i64> = wanted.iter().flat_map(|wanted| wanted.targets.msg_ids()).collect();
            self.connection.settle_unlocked_by_id(queue, &msg_ids, &settlements, *sight).await
        };
        let mut looks = looks.map_err(failure)?.into_iter();
        Ok(wanted.iter().map(|wanted| looks.by_ref().take(wanted.targets.len()).collect()).collect())
    }
}

/// Tells of what was not settled whether it is gone or was read again; what is neither is locked. If that fails, a caller of
/// whom nothing is settled has the error, and to any other the rest counts as locked: its next try tells.
async fn look_closer(first: &mut First<'_>, wanted: &[&Wanted], looks: &mut [Result<Vec<FirstLook>>]) {
    let mut places = Vec::new();
    for (caller, looks) in looks.iter().enumerate() {
        let looks = looks.iter().flatten().enumerate();
        places.extend(
            looks.filter(|(_, look)| **look == FirstLook::NotSettled).map(|(place, _)| (caller, place)),
        );
    }
    if places.is_empty() {
        return;
    }
    let queue = &first.lane.queue;
    let told = if first.lane.by_receipt {
        let receipts =
            places.iter().flat_map(|&(caller, place)| wanted[caller].targets.receipts().get(place));
        let receipts: Vec<&Receipt> = receipts.collect();
        first.connection.tell(queue, &receipts).await
    } else {
        let msg_ids: Vec<i64> =
            places.iter().map(|&(caller, place)| wanted[caller].targets.msg_id(place)).collect();
        let settlement = wanted[places[0].0].deed.settlement(0);
        first.connection.tell_by_id(queue, &msg_ids, settlement).await
    };
    for (index, &(caller, place)) in places.iter().enumerate() {
        match &told {
            Ok(told) => {
                if let Ok(looks) = &mut looks[caller] {
                    looks[place] = told[index];
                }
            }
            Err(error) => {
                let is_told = looks[caller].iter().flatten().any(|look| matches!(look, FirstLook::Told(_)));
                if !is_told {
                    looks[caller] = Err(error.clone());
                }
            }
        }
    }
}

/// What a failed statement says of its items.
pub(super) fn failure(error: Error) -> Failure {
    let error = match error.kind() {
        // It was the statement's own limit and no caller's deadline, and the database has taken it back.
        Kind::DeadlineExceeded => {
            let why = "the database took too long for the queue; nothing was applied";
            error.reworded(Kind::QueueBusy, why).retry_after(Duration::from_secs(1))
        }
        _ => error,
    };
    let blame = match error.kind() {
        Kind::Conflict => Blame::Collision,
        _ if may_be_one_items_fault(&error) => Blame::Item,
        _ => Blame::All,
    };
    Failure { error, blame }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;
    use crate::domain::message::ItemResult;
    use crate::engine::{Interest, Wake, Window};

    #[test]
    fn what_is_given_back_frees_its_slot_and_wakes_those_who_wait() {
        let queue = QueueName::try_from("orders".to_owned()).expect("a name");
        let at = Timestamp::from_unix_micros(1);
        let receipts = [1, 2].map(|msg_id| Receipt::new(&queue, at, msg_id, 1, at, Some(at)));
        let events = Events::default();
        let followed = events.follow(&queue);
        let (wake, window) = (Arc::new(Wake::default()), Arc::new(Window::new(2)));
        window.take(receipts.into_iter(), Duration::from_secs(30));
        followed.add_reader(&wake, Interest::Visible);
        followed.add_window(&window);
        let tell = |outcome| {
            let look = |outcome| FirstLook::Told(ItemResult { outcome, vt: None });
            let mut changes = Changes::default();
            let looks = [look(Outcome::Stale), look(outcome)];
            Deed::GiveBack.tell(&mut changes, &queue, None, &Targets::Receipts(receipts.to_vec()), &looks);
            changes.tell(&events);
        };
        tell(Outcome::NotFound);
        assert!(!wake.is_due() && window.receipts().len() == 2);
        tell(Outcome::Done);
        assert!(wake.is_due());
        assert_eq!(window.receipts(), [receipts[0]]);
    }
}

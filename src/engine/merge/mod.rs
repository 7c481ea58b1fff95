//! Many callers' items in one statement: a lane gathers while its last flush is under way, and fires at once when idle.
//!
//! There is no timer. A lone caller's items go out as soon as they come; under load a set grows by itself while the one
//! before it is at the database. One flush of a lane is under way at a time, so that items keep their order.

mod bisect;
mod group;
mod overrun;
mod parcel;
mod shares;

#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{Parked, Refusals};
use crate::domain::{Error, Kind, Result};

use overrun::{Overrun, Turn};

pub use bisect::{Attempt, Blame, Failure, bisect};
pub use group::{Groups, Lead, Role, Seat};
pub use parcel::{Load, Parcel, Verdict};
pub use shares::{Share, Shares};

/// The most items of one flush. A larger parcel goes alone.
pub const MAX_FLUSH_ITEMS: usize = 1_024;

/// The most bytes of one flush. A larger parcel goes alone.
pub const MAX_FLUSH_BYTES: usize = 512 * 1024;

/// How many parcels a flush passes over, because they do not go with those that it takes, before it looks no further.
const MAX_PASSED_OVER: usize = 256;

/// What may wait to be flushed.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Items in all lanes; a single lane may have half of them.
    pub items: usize,
    /// Bytes in all lanes; a single lane may have half of them.
    pub bytes: usize,
}

/// What waits to be flushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Line {
    /// Items that no flush has taken yet.
    pub items: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Lanes with something under way or waiting.
    pub lanes: usize,
    /// Lanes that let no more wait than one flush takes, because more comes than the database takes.
    pub refusing_lanes: usize,
}

/// How the parcels of a lane become one flush.
pub trait Merge: Send + Sync + 'static {
    /// What keeps parcels apart that do not go together.
    type Lane: Clone + Debug + Eq + Hash + Send + Sync + 'static;
    /// What a parcel holds.
    type Load: Load + Send + 'static;
    /// What becomes of a parcel.
    type Answer: Send + 'static;
    /// What a flush needs before it takes its parcels, such as a connection.
    type Open: Send;
    /// What is known of the parcels of a flush while they are picked.
    type Picked: Default + Send;

    /// Whether a parcel goes with those that were picked. One that does not waits for the next flush; the first one
    /// always goes.
    fn goes_with(_picked: &mut Self::Picked, _load: &Self::Load) -> bool {
        true
    }

    /// Prepares a flush, while its parcels still gather.
    fn open(&self, lane: &Self::Lane) -> impl Future<Output = Result<Self::Open>> + Send;

    /// Does what the parcels want, and answers every one of them. Gives the error that those who wait in the lane are to
    /// hear too, because they would wait for nothing but the same.
    fn flush(
        &self,
        lane: &Self::Lane,
        open: Self::Open,
        parcels: Vec<Parcel<Self::Load, Self::Answer>>,
    ) -> impl Future<Output = Option<Error>> + Send;
}

/// Takes parcels and gives them to flushes.
pub struct Merger<M: Merge> {
    shared: Arc<Shared<M>>,
}

struct Shared<M: Merge> {
    merge: M,
    bounds: Bounds,
    waiting: Mutex<Waiting<M>>,
    /// Told whenever a flush has taken its parcels.
    room: Notify,
    tasks: TaskTracker,
    parked: Parked,
}

/// A parcel for which there was no place.
struct Refused<M: Merge> {
    lane: M::Lane,
    load: M::Load,
    error: Error,
}

/// What waits. A lane is listed for exactly as long as its actor runs.
struct Waiting<M: Merge> {
    lanes: HashMap<M::Lane, Lane<M>>,
    items: usize,
    bytes: usize,
    /// Lanes that are late or overrun. One that is overrun stays here while it is idle: those whom it has refused will come.
    overruns: HashMap<M::Lane, Overrun>,
    /// Of callers whose lanes are not overrun.
    refusals: Refusals,
}

struct Lane<M: Merge> {
    parcels: VecDeque<Parcel<M::Load, M::Answer>>,
    items: usize,
    bytes: usize,
}

/// How a caller takes it that no place is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It is refused.
    None,
    /// It waits. Such callers fill no more than the next two flushes, or half of the next one of a lane that is overrun, so
    /// that the others find places.
    Endless,
}

impl<M: Merge> Merger<M> {
    /// A merger whose flushes run in tasks that are waited for at the server's end. It parks the calls that hand in parcels,
    /// until these are answered.
    pub fn new(merge: M, bounds: Bounds, tasks: TaskTracker, parked: Parked) -> Self {
        let waiting = Mutex::new(Waiting {
            lanes: HashMap::new(),
            items: 0,
            bytes: 0,
            overruns: HashMap::new(),
            refusals: Refusals::default(),
        });
        Self { shared: Arc::new(Shared { merge, bounds, waiting, room: Notify::new(), tasks, parked }) }
    }

    /// Hands in a parcel. Its verdict comes after the commit; a caller who drops the verdict before the parcel was
    /// picked for a flush takes the parcel back.
    ///
    /// # Errors
    /// `Overloaded` where no place is left: nothing was applied.
    pub fn submit(&self, lane: M::Lane, load: M::Load) -> Result<Verdict<M::Answer>> {
        self.try_submit(lane, load, Patience::None).map_err(|refused| refused.error)
    }

    /// Hands in a parcel as soon as there is a place for it. What one caller hands in so keeps its order only if it
    /// waits for each before it hands in the next.
    pub async fn submit_when_room(&self, lane: M::Lane, load: M::Load) -> Verdict<M::Answer> {
        let (mut lane, mut load) = (lane, load);
        loop {
            let mut room = std::pin::pin!(self.shared.room.notified());
            // From here on no flush that begins is missed.
            room.as_mut().enable();
            match self.try_submit(lane, load, Patience::Endless) {
                Ok(verdict) => return verdict,
                Err(refused) => Refused { lane, load, .. } = *refused,
            }
            room.await;
        }
    }

    fn try_submit(
        &self,
        lane: M::Lane,
        load: M::Load,
        patience: Patience,
    ) -> Result<Verdict<M::Answer>, Box<Refused<M>>> {
        let mut waiting = self.shared.lock();
        if let Err(error) = waiting.admit(&lane, &load, self.shared.bounds, patience) {
            return Err(Box::new(Refused { lane, load, error }));
        }
        // What streams hand in is not counted among the calls.
        let parked = (patience == Patience::None).then(|| self.shared.parked.clone());
        let (parcel, verdict) = Parcel::new(load, parked);
        let started = match waiting.lanes.entry(lane) {
            Entry::Occupied(mut running) => {
                running.get_mut().push(parcel);
                None
            }
            Entry::Vacant(idle) => {
                let lane = idle.key().clone();
                idle.insert(Lane::default()).push(parcel);
                Some(lane)
            }
        };
        drop(waiting);
        if let Some(lane) = started {
            let actor = Actor { shared: Arc::clone(&self.shared), lane };
            self.shared.tasks.spawn(actor.run());
        }
        Ok(verdict)
    }

    /// What waits to be picked.
    pub fn line(&self) -> Line {
        let waiting = self.shared.lock();
        let refusing_lanes = waiting.overruns.values().filter(|overrun| overrun.is_on()).count();
        Line { items: waiting.items, bytes: waiting.bytes, lanes: waiting.lanes.len(), refusing_lanes }
    }

    /// How many items wait to be picked, and how many lanes have an actor.
    #[cfg(test)]
    fn load(&self) -> (usize, usize) {
        let waiting = self.shared.lock();
        (waiting.items, waiting.lanes.len())
    }
}

impl<M: Merge> Shared<M> {
    fn lock(&self) -> MutexGuard<'_, Waiting<M>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Merge> Waiting<M> {
    /// Counts a parcel, if there is a place for it.
    fn admit(&mut self, lane: &M::Lane, load: &M::Load, bounds: Bounds, patience: Patience) -> Result<()> {
        let (items, bytes) = (load.items(), load.bytes());
        let (lane_items, lane_bytes) = self.lanes.get(lane).map_or((0, 0), |lane| (lane.items, lane.bytes));
        let overrun = self.overruns.get_mut(lane).filter(|overrun| overrun.is_on());
        let halves_of_a_flush = match (patience, overrun.is_some()) {
            (Patience::Endless, true) => 1,
            (Patience::None, true) => 2,
            (Patience::Endless, false) => 4,
            (Patience::None, false) => usize::MAX,
        };
        let most_items = (MAX_FLUSH_ITEMS / 2).saturating_mul(halves_of_a_flush).min(bounds.items / 2);
        let most_bytes = (MAX_FLUSH_BYTES / 2).saturating_mul(halves_of_a_flush).min(bounds.bytes / 2);
        // What comes to an idle server, or to an idle lane of a server with room, is never too large.
        let all_full =
            self.items > 0 && (self.items + items > bounds.items || self.bytes + bytes > bounds.bytes);
        let lane_full =
            lane_items > 0 && (lane_items + items > most_items || lane_bytes + bytes > most_bytes);
        if all_full || lane_full {
            let pause = match (overrun.filter(|_| lane_full), patience) {
                (Some(overrun), Patience::None) => overrun.refuse(),
                (None, Patience::None) => self.refusals.refuse(),
                // Such a caller is not told.
                (_, Patience::Endless) => Duration::ZERO,
            };
            let whose = if all_full { "the server" } else { "the queue" };
            let why = format!("too much waits for the database at {whose}; nothing was applied");
            return Err(Error::new(Kind::Overloaded, why).retry_after(pause));
        }
        self.items += items;
        self.bytes += bytes;
        Ok(())
    }

    /// Picks what the next flush takes, in order; parcels whose callers are gone are dropped.
    fn pick(&mut self, name: &M::Lane) -> Vec<Parcel<M::Load, M::Answer>> {
        let Some(lane) = self.lanes.get_mut(name) else {
            return Vec::new();
        };
        let mut picked = Vec::new();
        let (mut items, mut bytes) = (0, 0);
        let mut together = M::Picked::default();
        let mut left = VecDeque::new();
        while let Some(parcel) = lane.parcels.pop_front() {
            let (more_items, more_bytes) = (parcel.load.items(), parcel.load.bytes());
            if !parcel.is_awaited() {
                self.items -= more_items;
                self.bytes -= more_bytes;
                lane.items -= more_items;
                lane.bytes -= more_bytes;
                continue;
            }
            let full = items + more_items > MAX_FLUSH_ITEMS || bytes + more_bytes > MAX_FLUSH_BYTES;
            if full && !picked.is_empty() {
                left.push_back(parcel);
                break;
            }
            if !M::goes_with(&mut together, &parcel.load) && !picked.is_empty() {
                left.push_back(parcel);
                if left.len() >= MAX_PASSED_OVER {
                    break;
                }
                continue;
            }
            items += more_items;
            bytes += more_bytes;
            picked.push(parcel);
        }
        // Those that were passed over come first the next time.
        while let Some(parcel) = left.pop_back() {
            lane.parcels.push_front(parcel);
        }
        lane.items -= items;
        lane.bytes -= bytes;
        self.items -= items;
        self.bytes -= bytes;
        let leaves_some = !lane.parcels.is_empty();
        if let Some(first) = picked.first() {
            self.judge(name, first.came, leaves_some);
        }
        picked
    }

    /// Judges how a lane copes, by a flush that it has just picked.
    fn judge(&mut self, name: &M::Lane, first_came: Instant, leaves_some: bool) {
        let overrun = match self.overruns.get_mut(name) {
            Some(overrun) => overrun,
            None if Overrun::is_late(first_came, leaves_some) => {
                self.overruns.retain(|lane, overrun| {
                    if overrun.has_ended() {
                        tell_end(lane);
                    }
                    !overrun.is_over()
                });
                self.overruns.entry(name.clone()).or_default()
            }
            None => return,
        };
        match overrun.picked(first_came, leaves_some) {
            Some(Turn::Begins) => {
                tracing::warn!(lane = ?name, "more comes than the database takes: callers are refused");
            }
            Some(Turn::Ends) => tell_end(name),
            None => {}
        }
        if overrun.is_over() {
            self.overruns.remove(name);
        }
    }

    /// Ends a lane if nothing waits in it.
    fn end_if_idle(&mut self, lane: &M::Lane) -> bool {
        let idle = self.lanes.get(lane).is_none_or(|lane| lane.parcels.is_empty());
        if idle {
            self.end(lane);
        }
        idle
    }

    /// Ends a lane with all that waits in it.
    fn end(&mut self, lane: &M::Lane) -> VecDeque<Parcel<M::Load, M::Answer>> {
        // What was late a moment ago counts when the lane is used again.
        if self.overruns.get(lane).is_some_and(Overrun::is_over)
            && self.overruns.remove(lane).is_some_and(|overrun| overrun.has_ended())
        {
            tell_end(lane);
        }
        let Some(lane) = self.lanes.remove(lane) else {
            return VecDeque::new();
        };
        self.items -= lane.items;
        self.bytes -= lane.bytes;
        lane.parcels
    }
}

fn tell_end(lane: &impl Debug) {
    tracing::info!(?lane, "callers are refused no more");
}

impl<M: Merge> Default for Lane<M> {
    fn default() -> Self {
        Self { parcels: VecDeque::new(), items: 0, bytes: 0 }
    }
}

impl<M: Merge> Lane<M> {
    fn push(&mut self, parcel: Parcel<M::Load, M::Answer>) {
        self.items += parcel.load.items();
        self.bytes += parcel.load.bytes();
        self.parcels.push_back(parcel);
    }
}

/// Flushes one lane until nothing waits in it.
struct Actor<M: Merge> {
    shared: Arc<Shared<M>>,
    lane: M::Lane,
}

impl<M: Merge> Actor<M> {
    async fn run(self) {
        loop {
            let failed = match self.shared.merge.open(&self.lane).await {
                Ok(open) => {
                    let parcels = self.shared.lock().pick(&self.lane);
                    self.shared.room.notify_waiters();
                    match parcels.is_empty() {
                        true => None,
                        false => self.shared.merge.flush(&self.lane, open, parcels).await,
                    }
                }
                Err(error) => Some(error),
            };
            // Nothing was handed over for any of those that wait.
            if let Some(error) = failed {
                let parcels = self.shared.lock().end(&self.lane);
                self.shared.room.notify_waiters();
                parcels.into_iter().for_each(|parcel| parcel.answer(Err(error.clone())));
                return;
            }
            if self.shared.lock().end_if_idle(&self.lane) {
                return;
            }
        }
    }
}

impl<M: Merge> Drop for Actor<M> {
    /// If a flush panicked, its lane must not be left without an actor. The callers hear of it by their parcels' end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.shared.lock().end(&self.lane));
            self.shared.room.notify_waiters();
        }
    }
}

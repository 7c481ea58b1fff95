//! Sends and settles of all callers, merged: one statement for many, and for each its own verdict.

mod groups;
mod held;
mod lines;
mod looks;
mod pauses;
mod sends;
mod settles;
mod settling;

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::domain::{OutgoingMessage, Queue, QueueName, ReadOrder, Result, Sent};
use crate::engine::merge::{Bounds, Line, Merger, Shares, Verdict};
use crate::engine::{Events, Parked};
use crate::pg::{Database, Policies};

pub use lines::{Place, SendLines};
use looks::{Look, Looks};
use sends::{Sending, Sends};
pub use settles::Change;
use settles::Settles;
pub use settling::Told;

/// What becomes of each message of a parcel: its id, or why it was not stored.
pub type SentParcel = Vec<Result<Sent>>;

/// The mergers of a server.
pub struct Merging {
    sends: Merger<Sends>,
    settles: Merger<Settles>,
    looks: Merger<Looks>,
    tasks: TaskTracker,
    parked: Parked,
    policies: Policies,
}

impl Merging {
    /// Mergers over a database of so many connections; their flushes are waited for in `tasks`, and the calls
    /// that wait for them are counted in `parked`.
    pub fn new(
        database: &Database,
        events: &Events,
        connections: u32,
        bounds: Bounds,
        tasks: &TaskTracker,
        parked: &Parked,
    ) -> Self {
        // Half of the pool for one queue's flushes.
        let shares = Arc::new(Shares::new(connections as usize / 2));
        // What is held waits on a quarter of it.
        let held = (bounds.bytes, connections as usize / 4);
        // And another quarter serves the plain sends of many queues together.
        let groups = connections as usize / 4;
        let sends =
            Sends::new(database.clone(), events.clone(), Arc::clone(&shares), held, groups, tasks.clone());
        let settles = Settles::new(database.clone(), events.clone(), shares);
        Self {
            sends: Merger::new(sends, bounds, tasks.clone(), parked.clone()),
            settles: Merger::new(settles, bounds, tasks.clone(), parked.clone()),
            looks: Merger::new(Looks(database.clone()), bounds, tasks.clone(), parked.clone()),
            tasks: tasks.clone(),
            parked: parked.clone(),
            policies: database.policies().clone(),
        }
    }

    /// What waits to be sent, and what to be settled.
    pub fn lines(&self) -> (Line, Line) {
        (self.sends.line(), self.settles.line())
    }

    /// Asks whether a queue is there, and can be read in an order.
    pub async fn look(&self, order: &ReadOrder) -> Verdict<Queue> {
        self.looks.submit_when_room(order.queue.clone(), Look(order.ordering)).await
    }

    /// Hands in messages for one queue, which keep their order; each gets its own verdict, after the commit.
    ///
    /// # Errors
    /// `Overloaded` where no place is left: nothing was applied.
    pub fn send(&self, queue: QueueName, messages: Vec<OutgoingMessage>) -> Result<Verdict<SentParcel>> {
        let (lane, sending) = Sending::alone(queue, messages);
        self.sends.submit(lane, sending)
    }

    /// The same as soon as there is room for them, and behind what its stream has handed in for the queue before. What
    /// comes next in the line is to be handed in only then.
    pub async fn send_in_line(
        &self,
        place: Place,
        queue: QueueName,
        messages: Vec<OutgoingMessage>,
    ) -> Verdict<SentParcel> {
        let (lane, sending) = Sending::in_line(place, queue, messages);
        self.sends.submit_when_room(lane, sending).await
    }
}

//! A subscriber's end: it says how much it wants and takes what it is given.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::class::Class;
use super::handover::Handover;
use super::share::{Item, Manner};
use crate::domain::{Error, Result};

/// A place among those who read a queue alike. Dropped, it gives back what it was given and has not taken.
pub struct Subscription {
    class: Arc<Class>,
    id: u64,
    inbox: mpsc::UnboundedReceiver<Item>,
    /// The end, if it was found while nobody waited for anything.
    ended: Option<Error>,
}

impl Subscription {
    pub(super) fn new(class: Arc<Class>, manner: Manner) -> Self {
        let (sender, inbox) = mpsc::unbounded_channel();
        let id = class.lock().share.add(manner, sender);
        // Who is new wants to know what is there now, and not what was there when somebody looked.
        match manner.impatient {
            true => class.resume(),
            false => class.wake.now(),
        }
        Self { class, id, inbox, ended: None }
    }

    /// Says how many messages it would take now; 0 stops what has not been given yet. A handover uses the demand up,
    /// also if it brings fewer: say it again when more may come. While one has been given and not been taken, nothing
    /// changes: it may hold all that is wanted. [`Subscription::withdraw`] gives that back too.
    pub fn set_demand(&self, count: usize) {
        let mut state = self.class.lock();
        if !self.inbox.is_empty() {
            return;
        }
        state.share.demand(self.id, count);
        drop(state);
        self.class.wake.nudge();
    }

    /// Wants nothing any more, and gives back what has been given and not been taken.
    pub fn withdraw(&mut self) {
        self.class.lock().share.demand(self.id, 0);
        while let Ok(item) = self.inbox.try_recv() {
            match item {
                Item::Messages(untaken) => drop(untaken),
                Item::Nothing => {}
                Item::End(error) => self.ended = Some(error),
            }
        }
    }

    /// Waits for messages. What has been given and not been taken stays: dropping the future loses nothing.
    ///
    /// # Errors
    /// `QueueNotFound` if the queue was dropped, or made anew; `Draining`; what no repetition would mend, such as
    /// `PermissionDenied`. While the database cannot be reached it waits.
    pub async fn next(&mut self) -> Result<Handover> {
        loop {
            if let Some(handover) = self.next_or_nothing().await? {
                return Ok(handover);
            }
        }
    }

    /// As [`Subscription::next`]; none if a read found nothing that began after the demand. For the impatient.
    pub(super) async fn next_or_nothing(&mut self) -> Result<Option<Handover>> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        match self.inbox.recv().await {
            Some(Item::Messages(handover)) => Ok(Some(handover)),
            Some(Item::Nothing) => Ok(None),
            Some(Item::End(error)) => Err(error),
            None => Err(Error::draining()),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.class.lock().share.remove(self.id);
        // The last one to leave lets the dispatcher end.
        self.class.wake.nudge();
    }
}

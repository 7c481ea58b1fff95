//! Reads on behalf of many: one reader for all who read a queue alike, driven by what they want.
//!
//! A class of reads is a queue, an ordering, a visibility timeout and a condition. Its dispatcher has at most one read
//! under way, asks for as much as its subscribers want together, and hands over at once what came: nothing is kept for
//! later, and what nobody takes goes back. Without a demand there is no query.

mod checks;
mod class;
mod dispatcher;
#[cfg(test)]
pub(crate) mod fake;
mod handover;
mod lookout;
mod share;
mod source;
mod subscription;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::checks::Checks;
use self::class::Class;
pub use self::handover::Handover;
use self::handover::Returns;
use self::lookout::Lookout;
use self::share::Manner;
pub use self::source::{Session, Source};
pub use self::subscription::Subscription;
use super::Events;
use super::window::Window;
use crate::domain::bounds::MAX_REPLY_BYTES;
use crate::domain::{Error, Kind, QueueName, ReadOrder, Result, Timestamp};

/// The most classes of reads of one queue: each costs a read for every message that comes.
const CLASSES_OF_A_QUEUE: usize = 32;

/// All dispatchers of this replica.
#[derive(Clone)]
pub struct Dispatch {
    shared: Arc<Shared>,
}

struct Shared {
    source: Arc<dyn Source>,
    events: Events,
    returns: Returns,
    lookout: Lookout,
    checks: Checks,
    tasks: TaskTracker,
    drain: CancellationToken,
    reads: Arc<Semaphore>,
    /// What slow reads have of them.
    slow_reads: Arc<Semaphore>,
    classes: Mutex<HashMap<QueueName, Vec<Arc<Class>>>>,
}

/// The right to read, and the session to do it with.
struct Turn {
    session: Box<dyn Session>,
    _of_queue: OwnedSemaphorePermit,
    _of_slow: Option<OwnedSemaphorePermit>,
    _of_all: OwnedSemaphorePermit,
}

impl Dispatch {
    /// Prepares dispatchers that have at most `reads` reads under way together, so that others get connections too, and half
    /// as many that are slow.
    pub fn new(
        source: Arc<dyn Source>,
        events: &Events,
        tasks: &TaskTracker,
        drain: &CancellationToken,
        reads: usize,
    ) -> Self {
        let returns = Returns::new(Arc::clone(&source), events.clone(), tasks.clone());
        let lookout = Lookout::new(Arc::clone(&source), events.clone(), tasks.clone(), drain.clone());
        let checks = Checks::new(Arc::clone(&source), tasks.clone());
        let shared = Shared {
            source,
            lookout,
            checks,
            events: events.clone(),
            returns,
            tasks: tasks.clone(),
            drain: drain.clone(),
            reads: Arc::new(Semaphore::new(reads.max(1))),
            slow_reads: Arc::new(Semaphore::new((reads / 2).max(1))),
            classes: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Subscribes to one incarnation of a queue. A handover has at most `piece_bytes`, or one larger message. Nothing
    /// comes before [`Subscription::set_demand`].
    ///
    /// # Errors
    /// `Overloaded` if the queue is read in too many ways at once; `Draining`.
    pub fn subscribe(
        &self,
        order: &ReadOrder,
        queue_created_at: Timestamp,
        piece_bytes: usize,
    ) -> Result<Subscription> {
        let manner = Manner { piece_bytes, impatient: false, queue_created_at: Some(queue_created_at) };
        self.join(order, manner)
    }

    /// Reads once, together with all who read alike: until something is there, `until` has come, or the server ends. At
    /// least one read is looked at that began after the call. Dropped, it gives back what has come.
    ///
    /// # Errors
    /// Those of the read.
    pub async fn read_once(&self, order: &ReadOrder, count: usize, until: Instant) -> Result<Handover> {
        let piece_bytes = usize::try_from(MAX_REPLY_BYTES).unwrap_or(usize::MAX);
        let mut subscription =
            self.join(order, Manner { piece_bytes, impatient: true, queue_created_at: None })?;
        subscription.set_demand(count);
        let nothing = || Ok(Handover::new(&self.shared.returns, &order.queue, Vec::new()));
        let mut drained = std::pin::pin!(self.shared.drain.cancelled());
        let mut looked = false;
        loop {
            tokio::select! {
                biased;
                next = subscription.next_or_nothing() => match next {
                    Ok(Some(handover)) => return Ok(handover),
                    Ok(None) => looked = true,
                    // Who waits when the server ends has waited in vain.
                    Err(error) if error.kind() == Kind::Draining => return nothing(),
                    Err(error) => return Err(error),
                },
                () = &mut drained => return nothing(),
                () = sleep_until(until), if looked => return nothing(),
            }
            if looked && until <= Instant::now() {
                return nothing();
            }
        }
    }

    /// Asks the database which deliveries still hold their slots in a window: others may have settled them elsewhere.
    /// Asked for many windows of a queue, it is one question.
    ///
    /// # Errors
    /// `QueueNotFound`; whatever kept the database from answering.
    pub async fn check_window(&self, queue: &QueueName, window: &Arc<Window>) -> Result<()> {
        self.shared.checks.check(queue, window).await
    }

    /// How many dispatchers there are: one for each way in which a queue is read, or was a few seconds ago.
    pub fn dispatchers(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    fn join(&self, order: &ReadOrder, manner: Manner) -> Result<Subscription> {
        let mut classes = self.lock();
        if self.shared.drain.is_cancelled() {
            return Err(Error::draining());
        }
        let of_queue = classes.entry(order.queue.clone()).or_default();
        if let Some(class) = of_queue.iter().find(|class| class.order == *order) {
            return Ok(Subscription::new(Arc::clone(class), manner));
        }
        if of_queue.len() >= CLASSES_OF_A_QUEUE {
            of_queue.retain(|class| {
                let stays = !class.lock().share.is_empty();
                if !stays {
                    // Its dispatcher looks, finds that it is not listed, and ends.
                    class.wake.nudge();
                }
                stays
            });
        }
        if of_queue.len() >= CLASSES_OF_A_QUEUE {
            let why = "the queue is read in too many ways at once; nothing was applied";
            return Err(Error::new(Kind::Overloaded, why).retry_after(Duration::from_secs(1)));
        }
        let class = Arc::new(Class::new(order.clone(), self.shared.events.follow(&order.queue)));
        of_queue.push(Arc::clone(&class));
        let subscription = Subscription::new(Arc::clone(&class), manner);
        self.shared.tasks.spawn(dispatcher::run(self.clone(), class));
        Ok(subscription)
    }

    /// Whether anybody can still subscribe to a class.
    fn lists(&self, class: &Arc<Class>) -> bool {
        let classes = self.lock();
        classes
            .get(&class.order.queue)
            .is_some_and(|of_queue| of_queue.iter().any(|other| Arc::ptr_eq(other, class)))
    }

    /// Forgets a class if still nobody subscribes to it. Its dispatcher ends then.
    fn forget(&self, class: &Arc<Class>) -> bool {
        let mut classes = self.lock();
        if !class.lock().share.is_empty() {
            return false;
        }
        remove(&mut classes, class);
        true
    }

    /// Forgets a class whose dispatcher ends with the server.
    fn forget_for_ever(&self, class: &Arc<Class>) {
        remove(&mut self.lock(), class);
    }

    /// Waits for the right to read and for a session.
    async fn turn(&self, class: &Class, purpose: &'static str) -> Result<Turn> {
        let ended = |_| Error::draining();
        let of_queue = class.followed.reads().acquire_owned().await.map_err(ended)?;
        let (source, queue) = (&self.shared.source, &class.order.queue);
        loop {
            let is_slow = source.is_slow(purpose, queue);
            // They wait for each other at the source, too, and would do it with what the others need.
            let of_slow = match is_slow {
                true => Some(Arc::clone(&self.shared.slow_reads).acquire_owned().await.map_err(ended)?),
                false => None,
            };
            let of_all = Arc::clone(&self.shared.reads).acquire_owned().await.map_err(ended)?;
            // It may have become known meanwhile.
            if is_slow || !source.is_slow(purpose, queue) {
                let session = source.open(purpose, Some(queue)).await?;
                return Ok(Turn { session, _of_queue: of_queue, _of_slow: of_slow, _of_all: of_all });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Vec<Arc<Class>>>> {
        self.shared.classes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(classes: &mut HashMap<QueueName, Vec<Arc<Class>>>, class: &Arc<Class>) {
    if let Some(of_queue) = classes.get_mut(&class.order.queue) {
        of_queue.retain(|other| !Arc::ptr_eq(other, class));
        if of_queue.is_empty() {
            classes.remove(&class.order.queue);
        }
    }
}

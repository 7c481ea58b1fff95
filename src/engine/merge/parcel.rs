//! What one caller hands in at once, and the one channel by which it hears what became of it.

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::{Error, Result};
use crate::engine::ParkedCall;

/// How much a parcel's content counts against the limits.
pub trait Load {
    /// How many items it has.
    fn items(&self) -> usize;

    /// How many bytes they take.
    fn bytes(&self) -> usize;
}

/// One caller's items for one lane.
#[derive(Debug)]
pub struct Parcel<L, A> {
    /// The items.
    pub load: L,
    pub(super) came: Instant,
    verdict: oneshot::Sender<Result<A>>,
    parked: Option<ParkedCall>,
}

/// What will become of a parcel. Dropped, it says that the caller is gone.
#[derive(Debug)]
pub struct Verdict<A>(oneshot::Receiver<Result<A>>);

impl<L, A> Parcel<L, A> {
    /// A parcel and the verdict on it. A call that waits for nothing else is parked meanwhile.
    pub fn new(load: L, parked: Option<ParkedCall>) -> (Self, Verdict<A>) {
        let (verdict, heard) = oneshot::channel();
        (Self { load, came: Instant::now(), verdict, parked }, Verdict(heard))
    }

    /// Whether the caller still waits.
    pub fn is_awaited(&self) -> bool {
        !self.verdict.is_closed()
    }

    /// Tells the caller.
    pub fn answer(self, answer: Result<A>) {
        // A caller who has gone meanwhile hears nothing, and what was done stays done.
        let _ = self.verdict.send(answer);
    }

    /// The items and the means to tell the caller, apart.
    pub fn open(self) -> (L, Parcel<(), A>) {
        let Self { load, came, verdict, parked } = self;
        (load, Parcel { load: (), came, verdict, parked })
    }
}

impl<A> Verdict<A> {
    /// Waits for the verdict.
    ///
    /// # Errors
    /// The parcel's; `Internal` if the flush panicked.
    pub async fn wait(self) -> Result<A> {
        match self.0.await {
            Ok(answer) => answer,
            Err(_) => Err(Error::internal("a merged statement's task ended without an answer")),
        }
    }
}

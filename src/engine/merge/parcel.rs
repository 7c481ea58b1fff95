//! What one caller hands in at once, and the one channel by which it hears what became of it.

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::{Error, Result};
use crate::engine::{Parked, ParkedCall};

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
    /// Where its call is parked.
    parked: Option<Parked>,
}

/// What will become of a parcel. Dropped, it says that the caller is gone.
///
/// It is parked until it is there, or until the caller goes.
#[derive(Debug)]
pub struct Verdict<A> {
    heard: oneshot::Receiver<Result<A>>,
    parked: Option<ParkedCall>,
}

impl<L, A> Parcel<L, A> {
    /// A parcel and the verdict on it. A call that waits for nothing else is parked meanwhile.
    pub fn new(load: L, parked: Option<Parked>) -> (Self, Verdict<A>) {
        let (verdict, heard) = oneshot::channel();
        let call = parked.as_ref().map(Parked::park);
        (Self { load, came: Instant::now(), verdict, parked }, Verdict { heard, parked: call })
    }

    /// Whether the caller still waits.
    pub fn is_awaited(&self) -> bool {
        !self.verdict.is_closed()
    }

    /// Tells the caller.
    pub fn answer(self, answer: Result<A>) {
        // A caller who has gone meanwhile hears nothing, and what was done stays done.
        if self.verdict.send(answer).is_ok()
            && let Some(parked) = self.parked
        {
            parked.unpark();
        }
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
    pub async fn wait(mut self) -> Result<A> {
        match (&mut self.heard).await {
            Ok(answer) => {
                self.is_there();
                answer
            }
            Err(_) => Err(Error::internal("a merged statement's task ended without an answer")),
        }
    }
    /// Who answered has unparked the call.
    fn is_there(&mut self) {
        if let Some(mut call) = self.parked.take() {
            call.knows();
        }
    }
}

impl<A> Drop for Verdict<A> {
    fn drop(&mut self) {
        if self.parked.is_none() {
            return;
        }
        // From here on no answer comes, and so nobody else unparks the call.
        self.heard.close();
        if self.heard.try_recv().is_ok() {
            self.is_there();
        }
    }
}

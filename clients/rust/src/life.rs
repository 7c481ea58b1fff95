//! How far a client is on its way to being closed, and who is still at work for it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Code;

use crate::Error;

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Phase {
    Open,
    /// Consumers and watches end, and what is in hand is finished.
    Closing,
    /// Producers take nothing more either.
    Draining,
    Closed,
}

/// What a client shares with all that came of it.
#[derive(Debug)]
pub(crate) struct Life {
    phase: watch::Sender<Phase>,
    /// Handlers that run.
    pub(crate) handlers: Arc<Workers>,
    /// Streams with something under way.
    pub(crate) streams: Arc<Workers>,
}

tokio::task_local! {
    /// What counts the handler that this is, until it closes its client: it does not wait for itself.
    static HANDLER: RefCell<Option<AtWork>>;
}

impl Life {
    pub(crate) fn new() -> Arc<Self> {
        let phase = watch::Sender::new(Phase::Open);
        Arc::new(Self { phase, handlers: Arc::default(), streams: Arc::default() })
    }

    /// Lets consumers and watches end, and waits for handlers that run.
    pub(crate) async fn begin_to_close(&self) {
        self.reach(Phase::Closing);
        // Outside of a handler there is none to take.
        let _ = HANDLER.try_with(RefCell::take);
        self.handlers.gone().await;
    }

    /// Lets producers take nothing more, waits for what is under way on streams, and refuses everything then.
    pub(crate) async fn close(&self, limit: Duration) {
        self.reach(Phase::Draining);
        // A server that does not answer is not waited for any longer.
        let _ = timeout(limit, self.streams.gone()).await;
        self.reach(Phase::Closed);
    }

    fn reach(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = *now < phase;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Waits until the client begins to close.
    pub(crate) async fn ends(&self) {
        // It cannot fail: the sender is here.
        let _ = self.phase.subscribe().wait_for(|phase| *phase > Phase::Open).await;
    }

    /// Refuses what a closed client is asked.
    pub(crate) fn check_not_closed(&self) -> Result<(), Error> {
        if *self.phase.borrow() == Phase::Closed { Err(closed()) } else { Ok(()) }
    }

    /// Refuses what would have to be waited for.
    pub(crate) fn check_sending(&self) -> Result<(), Error> {
        if *self.phase.borrow() < Phase::Draining { Ok(()) } else { Err(closed()) }
    }

    /// Refuses to begin what would have to end at once.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if *self.phase.borrow() == Phase::Open { Ok(()) } else { Err(closed()) }
    }
}

pub(crate) fn closed() -> Error {
    Error::local(Code::Cancelled, "the client is closed")
}

/// Runs a handler, which is counted as long as it does not close its client.
pub(crate) async fn as_handler<F: Future>(at_work: AtWork, handler: F) -> F::Output {
    HANDLER.scope(RefCell::new(Some(at_work)), handler).await
}

/// Counts who is at work.
#[derive(Debug)]
pub(crate) struct Workers(watch::Sender<usize>);

impl Default for Workers {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Workers {
    pub(crate) fn begin(self: &Arc<Self>) -> AtWork {
        self.0.send_if_modified(|count| {
            *count += 1;
            false
        });
        AtWork(self.clone())
    }

    /// Waits until nobody is at work.
    pub(crate) async fn gone(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Counts as one at work until it is dropped.
#[derive(Debug)]
pub(crate) struct AtWork(Arc<Workers>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}

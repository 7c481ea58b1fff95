//! Which calls wait for the database or for their callers, and so cost the processor nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the calls that wait for something else than the processor.
#[derive(Debug, Clone, Default)]
pub struct Parked(Arc<AtomicUsize>);

/// One call that waits: until this is dropped, or until whom it waits for says so.
#[derive(Debug)]
pub struct ParkedCall {
    calls: Option<Parked>,
}

impl Parked {
    /// A call begins to wait.
    pub fn park(&self) -> ParkedCall {
        self.0.fetch_add(1, Ordering::Relaxed);
        ParkedCall { calls: Some(self.clone()) }
    }

    /// A call waits no more, although it does not know yet; it is told by [`ParkedCall::knows`].
    pub fn unpark(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many calls wait.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl ParkedCall {
    /// The call knows now that it was unparked.
    pub fn knows(&mut self) {
        self.calls = None;
    }
}

impl Drop for ParkedCall {
    fn drop(&mut self) {
        if let Some(calls) = self.calls.take() {
            calls.unpark();
        }
    }
}

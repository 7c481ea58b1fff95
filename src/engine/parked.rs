//! Which calls wait for the database or for their callers, and so cost the processor nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the calls that wait for something else than the processor.
#[derive(Debug, Clone, Default)]
pub struct Parked(Arc<AtomicUsize>);

/// One call that waits, for as long as this lives.
#[derive(Debug)]
pub struct ParkedCall(Arc<AtomicUsize>);

impl Parked {
    /// A call begins to wait.
    pub fn park(&self) -> ParkedCall {
        self.0.fetch_add(1, Ordering::Relaxed);
        ParkedCall(Arc::clone(&self.0))
    }

    /// How many calls wait.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for ParkedCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

//! The memory of calls that work by themselves: how much of it their messages may take while they wait and run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::domain::{Error, Kind, Result};

/// When a caller whom no memory was left for should come again.
const RETRY: Duration = Duration::from_millis(500);

/// What is held of a limit.
pub struct Budget {
    held: Arc<AtomicUsize>,
    limit: usize,
}

/// A part of a budget, given back when dropped.
pub(super) struct Held {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Budget {
    /// So many bytes.
    pub fn new(limit: usize) -> Self {
        Self { held: Arc::default(), limit }
    }

    /// Takes a part. One that comes alone is never too large.
    ///
    /// # Errors
    /// `Overloaded`: nothing was applied.
    pub(super) fn take(&self, bytes: usize) -> Result<Held> {
        let held = Held { held: Arc::clone(&self.held), bytes };
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        // The refused part is given back as it is dropped.
        if bytes > 0 && before > 0 && before + bytes > self.limit {
            let why =
                "the messages of calls that wait for the database take too much memory; nothing was applied";
            return Err(Error::new(Kind::Overloaded, why).retry_after(RETRY));
        }
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_up_to_the_limit_and_given_back() {
        let budget = Budget::new(10);
        let large = budget.take(50).ok();
        assert!(large.is_some());
        assert_eq!(budget.take(1).map(drop).map_err(|error| error.kind()), Err(Kind::Overloaded));
        assert!(budget.take(0).is_ok());
        drop(large);
        let (first, second) = (budget.take(6), budget.take(4));
        assert!(first.is_ok() && second.is_ok() && budget.take(1).is_err());
        drop(first);
        assert!(budget.take(6).is_ok());
    }
}

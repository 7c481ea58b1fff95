//! Where a batch waits for its transport, and from where it can be taken back.

use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::Handover;

/// One batch. Whoever comes first has it: the transport, or the stream's task that takes it back.
#[derive(Clone)]
pub(super) struct Shelf {
    handover: Arc<Mutex<Option<Handover>>>,
}

impl Shelf {
    pub(super) fn of(handover: Handover) -> Self {
        Self { handover: Arc::new(Mutex::new(Some(handover))) }
    }

    /// The batch; none if the other took it.
    pub(super) fn take(&self) -> Option<Handover> {
        self.handover.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

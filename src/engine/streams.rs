//! How many streams are open, by kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the RPC of its name")]
pub enum StreamKind {
    Read,
    Consume,
    Produce,
    Watch,
}

/// The open streams of a server.
#[derive(Debug, Default)]
pub struct Streams {
    open: [Arc<AtomicUsize>; 4],
}

/// A stream that is open until this is dropped.
#[derive(Debug)]
pub struct OpenStream(Arc<AtomicUsize>);

impl Streams {
    /// Counts one more.
    pub fn open(&self, kind: StreamKind) -> OpenStream {
        let count = Arc::clone(&self.open[kind as usize]);
        count.fetch_add(1, Ordering::Relaxed);
        OpenStream(count)
    }

    /// How many of a kind are open.
    pub fn count(&self, kind: StreamKind) -> usize {
        self.open[kind as usize].load(Ordering::Relaxed)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

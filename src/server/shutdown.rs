//! The signals that end a server: the first in order, the second at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Counts SIGTERM and SIGINT.
pub(super) struct Signals {
    count: watch::Receiver<u32>,
}

impl Signals {
    /// Listens from now on.
    pub(super) fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (counter, count) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = counter.closed() => return,
                }
                counter.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { count })
    }

    /// Waits for the first signal.
    pub(super) async fn first(&self) {
        self.reach(1).await;
    }

    /// Waits for the second signal.
    pub(super) async fn second(&self) {
        self.reach(2).await;
    }

    async fn reach(&self, wanted: u32) {
        let reached = self.count.clone().wait_for(|&count| count >= wanted).await.is_ok();
        if !reached {
            std::future::pending::<()>().await;
        }
    }
}

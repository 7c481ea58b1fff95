//! Connections that could not be made: bb8 makes them in the background and keeps their failures from those who wait.

use std::sync::Arc;

use bb8::ErrorSink;
use tokio::sync::watch;

use super::manager::ConnectError;

/// The last failure, for everybody who waits for a connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectFailures(watch::Sender<Option<Arc<ConnectError>>>);

impl ConnectFailures {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Waits for failures from now on.
    pub(super) fn subscribe(&self) -> NextFailure {
        NextFailure(self.0.subscribe())
    }
}

impl ErrorSink<ConnectError> for ConnectFailures {
    fn sink(&self, error: ConnectError) {
        self.0.send_replace(Some(Arc::new(error)));
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<ConnectError>> {
        Box::new(self.clone())
    }
}

/// What fails next.
pub(super) struct NextFailure(watch::Receiver<Option<Arc<ConnectError>>>);

impl NextFailure {
    /// Waits for the next failure.
    pub(super) async fn wait(&mut self) -> Arc<ConnectError> {
        loop {
            if self.0.changed().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(failure) = self.0.borrow_and_update().clone() {
                return failure;
            }
        }
    }
}

//! The other half of a connection: the task that moves its bytes, and hears what Postgres says unasked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{AsyncMessage, Connection, Error};

use super::guard::{Admission, Guard};

/// What a connection's task tells those who use the connection.
pub(super) struct Link {
    guard: Arc<Guard>,
    admission: OnceLock<Admission>,
    unreplicated: AtomicU64,
    /// Where the payloads of notifications go; a connection that does not listen has none.
    payloads: OnceLock<mpsc::Sender<String>>,
}

impl Link {
    /// Moves a connection's bytes in a task that ends with it.
    pub(super) fn spawn<S, T>(connection: Connection<S, T>, guard: Arc<Guard>) -> Arc<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (admission, payloads) = (OnceLock::new(), OnceLock::new());
        let link = Arc::new(Self { guard, admission, unreplicated: AtomicU64::new(0), payloads });
        tokio::spawn(Arc::clone(&link).drive(connection));
        link
    }

    /// From here on the end of this connection's server retires those that were let in with it.
    pub(super) fn admitted(&self, admission: Admission) {
        let _ = self.admission.set(admission);
    }

    /// How many commits of this connection may be missing on its synchronous standbys. Postgres tells that before it
    /// reports the statement as done, so the number is true as soon as an answer is there.
    pub(super) fn unreplicated(&self) -> u64 {
        self.unreplicated.load(Ordering::Acquire)
    }

    /// Hands on what this connection is notified of from now on, to one listener. The connection ends when that one does
    /// not keep up, or does not listen any more; and the payloads end with the connection, once nobody keeps this link.
    pub(super) fn listen(&self, backlog: usize) -> mpsc::Receiver<String> {
        let (sender, payloads) = mpsc::channel(backlog);
        let _ = self.payloads.set(sender);
        payloads
    }

    async fn drive<S, T>(self: Arc<Self>, mut connection: Connection<S, T>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
        T: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            match message {
                Ok(AsyncMessage::Notice(notice)) if is_unreplicated(&notice) => {
                    self.unreplicated.fetch_add(1, Ordering::Release);
                }
                Ok(AsyncMessage::Notification(notification)) => {
                    let heard = |listener: &mpsc::Sender<String>| {
                        listener.try_send(notification.payload().to_owned())
                    };
                    if self.payloads.get().is_some_and(|listener| heard(listener).is_err()) {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    self.heard(&error);
                    return;
                }
            }
        }
    }

    /// Hears an error of this connection: if its server ends or only reads from now on, so it is for all others.
    pub(super) fn heard(&self, error: &Error) {
        let Some(&admission) = self.admission.get() else { return };
        if error.code().is_some_and(is_of_the_server) {
            self.guard.retire(admission);
        }
    }
}

/// Whether an error means the whole server, and not one statement or connection.
fn is_of_the_server(code: &SqlState) -> bool {
    [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ]
    .contains(code)
}

/// Whether Postgres says that it gave up to wait for its standbys after a commit. The message comes in many languages,
/// the function that says it has one name.
fn is_unreplicated(notice: &DbError) -> bool {
    notice.routine() == Some("SyncRepWaitForLSN")
        || notice.detail().is_some_and(|detail| detail.contains("might not have been replicated"))
}

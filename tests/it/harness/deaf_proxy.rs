//! A way to Postgres on which notifications get lost, as in a pooler that shares connections.

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The type of Postgres's message that carries a notification.
const NOTIFICATION: u8 = b'A';

/// Listens on a port of its own and passes on everything else. It knows no TLS.
pub(crate) struct DeafProxy {
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl DeafProxy {
    /// Leads to a Postgres on a port of 127.0.0.1.
    pub(crate) async fn start(postgres: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", postgres)).await else { continue };
                let (mut asked, answers) = client.into_split();
                let (answered, mut questions) = server.into_split();
                tokio::spawn(async move {
                    let _ = copy(&mut asked, &mut questions).await;
                });
                tokio::spawn(pass_on(answered, answers));
            }
        });
        Self { port, task }
    }
}

impl Drop for DeafProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes on whole messages: a byte for the type, the length with its own four bytes, and the rest.
async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut head = [0; 5];
    while from.read_exact(&mut head).await.is_ok() {
        let [kind, length @ ..] = head;
        let rest = u32::from_be_bytes(length).saturating_sub(4);
        let mut message = head.to_vec();
        let read = (&mut from).take(rest.into()).read_to_end(&mut message).await;
        if read.is_err() || (kind != NOTIFICATION && to.write_all(&message).await.is_err()) {
            return;
        }
    }
}

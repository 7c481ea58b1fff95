//! A way to Postgres on which connections that listen can fall silent without a close, as behind a firewall that forgets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const LISTEN: &[u8] = b"LISTEN pgmq_grpc";

/// Listens on a port of its own and passes on everything, until it is told to fall silent. It knows no TLS.
pub(crate) struct SilentProxy {
    pub(crate) port: u16,
    silent: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl SilentProxy {
    /// Leads to a Postgres on a port of 127.0.0.1.
    pub(crate) async fn start(postgres: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let silent = Arc::new(AtomicBool::new(false));
        let is_silent = Arc::clone(&silent);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", postgres)).await else { continue };
                let (asked, answers) = client.into_split();
                let (answered, questions) = server.into_split();
                let listens = Arc::new(AtomicBool::new(false));
                tokio::spawn(pass_on(asked, questions, Arc::clone(&listens), Arc::clone(&is_silent)));
                tokio::spawn(pass_on(answered, answers, listens, Arc::clone(&is_silent)));
            }
        });
        Self { port, silent, task }
    }

    /// From now on nothing passes on connections that listen, and none of them is closed.
    pub(crate) fn silence(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

impl Drop for SilentProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    listens: Arc<AtomicBool>,
    is_silent: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if buffer[..count].windows(LISTEN.len()).any(|bytes| bytes == LISTEN) {
            listens.store(true, Ordering::Relaxed);
        }
        if listens.load(Ordering::Relaxed) && is_silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

//! A connection that is closed without the loss of what was sent last.
//!
//! A socket that is closed while bytes of its other end lie in it unread answers with a reset, and the other end then throws
//! away what it had not read yet: answers, for a client that went on sending when its streams had ended. So after the
//! last byte only one half is closed, and what still comes is read and dropped until the client closes the other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::{Sleep, sleep};

/// How long a client may take to close its half.
const LONGEST: Duration = Duration::from_secs(1);

/// A connection's bytes.
pub(super) struct Linger<I> {
    io: I,
    /// Until when is waited for the client's end, once our half is closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl<I> Linger<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, until: None }
    }
}

impl<I: Read + Unpin> Read for Linger<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<I: Read + Write + Unpin> Write for Linger<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let until = match &mut this.until {
            Some(until) => until,
            None => {
                std::task::ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
                this.until.insert(Box::pin(sleep(LONGEST)))
            }
        };
        let mut dropped = [0; 4096];
        while until.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut dropped);
            std::task::ready!(Pin::new(&mut this.io).poll_read(context, buffer.unfilled()))?;
            if buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// The two ends of a connection.
    async fn pair() -> (Linger<TokioIo<TcpStream>>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client =
            TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        (Linger::new(TokioIo::new(listener.accept().await.expect("a connection").0)), client)
    }

    async fn close(mut connection: Linger<TokioIo<TcpStream>>) {
        poll_fn(|context| Pin::new(&mut connection).poll_shutdown(context)).await.expect("an end");
    }

    #[tokio::test]
    async fn a_client_that_goes_on_sending_reads_what_was_sent_last() {
        let (mut connection, mut client) = pair().await;
        // More than the client's end has room for: what waits here is lost if the socket is closed too early.
        let answer = vec![7; 1 << 20];
        let mut written = 0;
        while let Some(more) =
            poll_fn(|context| Pin::new(&mut connection).poll_write(context, &answer)).now_or_never()
        {
            written += more.expect("a write");
        }
        client.write_all(&[1; 100_000]).await.expect("a write");
        let closing = tokio::spawn(close(connection));
        client.write_all(&[2; 100_000]).await.expect("a write");
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.expect("no reset");
        assert_eq!(read.len(), written);
        drop(client);
        closing.await.expect("an end");
    }

    #[tokio::test]
    async fn a_client_that_never_closes_is_waited_for_a_while_only() {
        let (connection, mut client) = pair().await;
        close(connection).await;
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.expect("an end");
        assert!(read.is_empty());
    }
}

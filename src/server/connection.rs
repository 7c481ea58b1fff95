//! HTTP/2 connections with all limits set.
//!
//! hyper is driven here and not by tonic's own server, because tonic answers an expired `grpc-timeout` with CANCELLED,
//! caps no connections, and waits without a limit when it ends.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::layer::Around;
use super::linger::Linger;
use super::listener::{Accepted, Listener};
use crate::queue::end_of_life;

const MAX_STREAMS: u32 = 200;
const MAX_LOCAL_RESETS: usize = 1_024;
const MAX_PENDING_RESETS: usize = 50;
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the answers of a connection's calls may take to begin at the drain before it is told to end.
const ANSWERING: Duration = Duration::from_millis(1_500);

/// The pause after a failed accept, which usually means that no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All connections of a server.
pub(super) struct Connections {
    calls: Around,
    places: Arc<Semaphore>,
    max_age: Option<Duration>,
    drain: CancellationToken,
    aborted: CancellationToken,
    tasks: TaskTracker,
}

/// When a connection is to end.
struct Ends {
    old: Option<Instant>,
    drain: CancellationToken,
    aborted: CancellationToken,
}

impl Connections {
    /// At most so many connections for these calls. One that is older than `max_age` takes no new calls, and closes when
    /// those that it has are done; all do so once `drain` is cancelled.
    pub(super) fn new(
        calls: Around,
        limit: usize,
        max_age: Option<Duration>,
        drain: CancellationToken,
    ) -> Self {
        Self {
            calls,
            places: Arc::new(Semaphore::new(limit)),
            max_age,
            drain,
            aborted: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts connections until the drain begins. Beyond the limit they wait in the system's queue.
    pub(super) fn accept_from(&self, listener: Listener) {
        let (calls, places, tasks) = (self.calls.clone(), Arc::clone(&self.places), self.tasks.clone());
        let (max_age, drain, aborted) = (self.max_age, self.drain.clone(), self.aborted.clone());
        self.tasks.spawn(async move {
            let mut failing = false;
            loop {
                let accepted = tokio::select! {
                    () = drain.cancelled() => return,
                    place = Arc::clone(&places).acquire_owned() => {
                        let Ok(place) = place else { return };
                        tokio::select! {
                            () = drain.cancelled() => return,
                            accepted = listener.accept() => accepted.map(|accepted| (accepted, place)),
                        }
                    }
                };
                match accepted {
                    Ok((accepted, place)) => {
                        failing = false;
                        let calls = calls.clone();
                        let (drain, aborted) = (drain.clone(), aborted.clone());
                        let ends = Ends { old: end_of_life(max_age), drain, aborted };
                        tasks.spawn(async move {
                            serve(accepted, calls, ends).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        if !failing {
                            tracing::warn!(address = listener.address(), %error, "cannot accept connections");
                        }
                        failing = true;
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }

    /// Waits until all connections are closed, once the drain has begun.
    pub(super) async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Cuts off what is still connected.
    pub(super) fn abort(&self) {
        self.aborted.cancel();
    }
}

impl Ends {
    /// Waits until no new calls are wanted. Whether it is because of the drain, in which they are refused.
    async fn wait(&self) -> bool {
        let old = async {
            match self.old {
                Some(old) => sleep_until(old).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = old => false,
            () = self.drain.cancelled() => true,
        }
    }
}

async fn serve(accepted: Accepted, calls: Around, ends: Ends) {
    match accepted {
        Accepted::Tcp(io, address) => {
            serve_io(io, calls.of_peer(address.to_string().into()), ends).await;
        }
        Accepted::Unix(io) => serve_io(io, calls.of_peer("unix".into()), ends).await,
    }
}

/// The calls of a connection, which run in its own task: what many of them wait for comes to all of them at once, and so
/// they are woken once, and their answers go out together. What may take long before its answer begins runs in a task of its
/// own; the answers of all are written here, piece by piece.
#[derive(Clone, Default)]
struct Streams {
    begun: Arc<Mutex<Vec<BoxFuture<'static, ()>>>>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        // One that panics ends by itself, and not with all others of its connection.
        let stream = AssertUnwindSafe(stream).catch_unwind().map(drop);
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(stream));
    }
}

impl Streams {
    /// Polls the connection and then its calls.
    fn poll_with<C: Future>(
        &self,
        connection: Pin<&mut C>,
        running: &mut FuturesUnordered<BoxFuture<'static, ()>>,
        context: &mut Context<'_>,
    ) -> Poll<C::Output> {
        if let Poll::Ready(ended) = connection.poll(context) {
            return Poll::Ready(ended);
        }
        running.extend(self.begun.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
        // What they send wakes this task again.
        while let Poll::Ready(Some(())) = running.poll_next_unpin(context) {}
        Poll::Pending
    }
}

async fn serve_io<I>(io: I, calls: Around, ends: Ends)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (streams, waits) = (Streams::default(), calls.waits());
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let mut connection = std::pin::pin!(builder.serve_connection(Linger::new(io), calls));
    let mut running = FuturesUnordered::new();
    let draining = tokio::select! {
        ended = poll_fn(|context| streams.poll_with(connection.as_mut(), &mut running, context)) => return log(ended),
        draining = ends.wait() => draining,
    };
    if draining {
        // GOAWAY has a price: if a client gives window to a call that it sent before it heard, as some do at once, h2 takes that
        // for an error and ends all calls of the connection. So those that wait for an answer get it first. Open streams would
        // hold it up for their clients' other calls, which the connection refuses meanwhile.
        let answered = poll_fn(|context| {
            loop {
                let waited = waits();
                match streams.poll_with(connection.as_mut(), &mut running, context) {
                    Poll::Pending if waits() => return Poll::Pending,
                    // What was said last goes out too.
                    Poll::Pending if waited => {}
                    Poll::Pending => return Poll::Ready(None),
                    Poll::Ready(ended) => return Poll::Ready(Some(ended)),
                }
            }
        });
        match ends.aborted.run_until_cancelled(timeout(ANSWERING, answered)).await {
            None => return,
            Some(Ok(Some(ended))) => return log(ended),
            Some(Ok(None) | Err(_)) => {}
        }
    }
    // GOAWAY: the client's next call goes over a new connection, and through a balancer perhaps elsewhere.
    connection.as_mut().graceful_shutdown();
    let ended = poll_fn(|context| streams.poll_with(connection.as_mut(), &mut running, context));
    if let Some(ended) = ends.aborted.run_until_cancelled(ended).await {
        log(ended);
    }
}

fn log(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::Executor;

    use super::*;

    #[tokio::test]
    async fn a_call_that_panics_ends_alone() {
        let (streams, mut running) = (Streams::default(), FuturesUnordered::new());
        let (told, heard) = tokio::sync::oneshot::channel();
        streams.execute(async { panic!("a fault of the test's own") });
        streams.execute(async move { told.send(7).expect("somebody who hears it") });
        let mut heard = std::pin::pin!(heard);
        let answer = poll_fn(|context| streams.poll_with(heard.as_mut(), &mut running, context)).await;
        assert_eq!(answer, Ok(7));
        assert!(running.is_empty());
    }
}

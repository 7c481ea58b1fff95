//! Between a stream's task and its transport: what is ready gathers here, and the transport takes all of it at once.

use std::collections::HashSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{CommandResult, Started};
use crate::domain::Result;
use crate::engine::Handover;
use crate::queue::ClosingReason;
use crate::queue::stream::PIECE_BYTES;

/// A planned end, as the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// Why.
    pub reason: ClosingReason,
    /// How long to wait before opening the stream again.
    pub retry_delay: Duration,
    /// How long settles are still served.
    pub settle_grace: Duration,
}

/// What the transport takes at once.
#[derive(Default)]
pub struct Piece {
    /// The stream is open.
    pub started: Option<Started>,
    /// Messages, which are the client's from here on.
    pub messages: Option<Handover>,
    /// A sign of life, with the number of messages that the client holds.
    pub heartbeat: Option<usize>,
    /// The stream is about to end.
    pub closing: Option<Closing>,
    /// What became of commands.
    pub results: Vec<CommandResult>,
    /// No message follows.
    pub stopped: bool,
}

impl Piece {
    fn is_empty(&self) -> bool {
        let Self { started, messages, heartbeat, closing, results, stopped } = self;
        started.is_none()
            && messages.is_none()
            && heartbeat.is_none()
            && closing.is_none()
            && results.is_empty()
            && !stopped
    }
}

/// Whether messages fill a reply by themselves.
fn is_large(messages: &Handover) -> bool {
    messages.deliveries().iter().map(|delivery| delivery.message.text_bytes()).sum::<usize>() > PIECE_BYTES
}

/// Both ends' meeting point.
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    piece: Piece,
    /// Since when messages wait to be taken.
    waiting_since: Option<Instant>,
    last_taken: Instant,
    /// The client let messages lie, and has not come for anything since.
    slow: bool,
    /// The end, once all else is taken; none of it when the end was taken too.
    end: Option<Option<Result<()>>>,
    waker: Option<Waker>,
    /// How many receipts the results are about.
    items: usize,
    closed: bool,
}

impl Outbox {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            piece: Piece::default(),
            waiting_since: None,
            last_taken: Instant::now(),
            slow: false,
            end: None,
            waker: None,
            items: 0,
            closed: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    /// The transport's side: what is ready; an error or nothing at the end.
    pub(super) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Result<Piece>>> {
        let mut state = self.lock();
        if !state.piece.is_empty() {
            state.last_taken = Instant::now();
            state.waiting_since = None;
            let piece = match state.piece.messages.take_if(|messages| is_large(messages)) {
                // The rest would be too much for one reply.
                Some(large) => Piece { messages: Some(large), ..Piece::default() },
                None => {
                    state.items = 0;
                    mem::take(&mut state.piece)
                }
            };
            drop(state);
            self.changed.notify_one();
            return Poll::Ready(Some(Ok(piece)));
        }
        if let Some(end) = &mut state.end {
            return Poll::Ready(end.take().and_then(Result::err).map(Err));
        }
        if mem::take(&mut state.slow) {
            self.changed.notify_one();
        }
        let known = state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if !known {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// The transport's side: nobody takes anything any more.
    pub(super) fn close(&self) {
        let untaken = {
            let mut state = self.lock();
            state.closed = true;
            mem::take(&mut state.piece)
        };
        drop(untaken);
        self.changed.notify_one();
    }

    /// Waits until the transport took something, or closed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Adds to what is ready. Nothing is kept once the transport is closed.
    pub(super) fn put(&self, add: impl FnOnce(&mut Piece)) {
        let mut state = self.lock();
        add(&mut state.piece);
        if state.closed {
            let untaken = mem::take(&mut state.piece);
            drop(state);
            return drop(untaken);
        }
        if state.piece.messages.is_some() && state.waiting_since.is_none() {
            state.waiting_since = Some(Instant::now());
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the stream once all that is ready has been taken.
    pub(super) fn end(&self, end: Result<()>) {
        self.lock().end = Some(Some(end));
        self.put(|_| {});
    }

    /// Takes messages back that the transport has not taken.
    pub(super) fn take_back(&self) -> Option<Handover> {
        let mut state = self.lock();
        state.waiting_since = None;
        state.piece.messages.take()
    }

    /// As [`Outbox::take_back`], because they have waited for too long: no more come before the transport does.
    pub(super) fn take_back_from_slow(&self) -> Option<Handover> {
        let mut state = self.lock();
        state.slow = true;
        state.waiting_since = None;
        state.piece.messages.take()
    }

    /// The ids of messages that wait to be taken.
    pub(super) fn untaken(&self) -> HashSet<i64> {
        let state = self.lock();
        let messages = state.piece.messages.as_ref().map(Handover::deliveries).unwrap_or_default();
        messages.iter().map(|delivery| delivery.message.msg_id).collect()
    }

    /// Since when messages wait to be taken, if any do.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.lock().waiting_since
    }

    /// Whether messages would be taken soon.
    pub(super) fn wants_messages(&self) -> bool {
        let state = self.lock();
        state.piece.messages.is_none() && !state.slow && !state.closed
    }

    /// Adds results of commands.
    pub(super) fn put_results(&self, results: Vec<CommandResult>) {
        let items = results.iter().map(|result| result.results.as_ref().map_or(0, Vec::len)).sum::<usize>();
        self.lock().items += items;
        self.put(|piece| piece.results.extend(results));
    }

    /// How many commands' results wait to be taken, and of how many receipts.
    pub(super) fn results(&self) -> (usize, usize) {
        let state = self.lock();
        (state.piece.results.len(), state.items)
    }

    /// When the transport took something last; now, if something waits that would do for a heartbeat.
    pub(super) fn last_taken(&self) -> Instant {
        let state = self.lock();
        if state.piece.is_empty() { state.last_taken } else { Instant::now() }
    }

    /// Whether nobody takes anything any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_fn;
    use futures_util::poll;

    use super::*;
    use crate::domain::Error;

    async fn next(outbox: &Outbox) -> Option<Result<Piece>> {
        poll_fn(|context| outbox.poll_next(context)).await
    }

    fn result(request_id: u64) -> CommandResult {
        CommandResult { request_id, results: Ok(Vec::new()) }
    }

    #[tokio::test]
    async fn what_gathers_is_taken_at_once_and_then_comes_the_end() {
        let outbox = Outbox::new();
        outbox.put(|piece| piece.results.push(result(1)));
        outbox.put(|piece| piece.heartbeat = Some(3));
        outbox.put(|piece| piece.results.push(result(2)));
        outbox.end(Err(Error::deadline_exceeded()));
        assert_eq!(outbox.results().0, 2);

        let piece = next(&outbox).await.expect("a piece").expect("no error");
        assert_eq!(piece.results.iter().map(|result| result.request_id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(piece.heartbeat, Some(3));
        assert!(next(&outbox).await.is_some_and(|end| end.is_err()));
        assert!(next(&outbox).await.is_none());
    }

    #[tokio::test]
    async fn a_transport_that_waits_is_woken() {
        let outbox = Outbox::new();
        let mut waiting = Box::pin(next(&outbox));
        assert!(poll!(&mut waiting).is_pending());
        outbox.put(|piece| piece.stopped = true);
        assert!(waiting.await.is_some_and(|piece| piece.is_ok_and(|piece| piece.stopped)));
        outbox.changed().await;
    }

    #[tokio::test]
    async fn a_closed_outbox_keeps_nothing() {
        let outbox = Outbox::new();
        outbox.put(|piece| piece.results.push(result(1)));
        outbox.close();
        outbox.put(|piece| piece.results.push(result(2)));
        assert!(outbox.is_closed() && !outbox.wants_messages());
        assert_eq!(outbox.results().0, 0);
    }

    #[tokio::test]
    async fn a_slow_transport_gets_messages_again_when_it_comes() {
        let outbox = Outbox::new();
        assert!(outbox.take_back_from_slow().is_none());
        assert!(!outbox.wants_messages());
        let mut waiting = Box::pin(next(&outbox));
        assert!(poll!(&mut waiting).is_pending());
        assert!(outbox.wants_messages());
    }
}

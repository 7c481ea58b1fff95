//! The task of one stream: waits for messages, heartbeats and the end, while its client takes what it is offered.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::shelf::Shelf;
use super::{ClosingReason, GOODBYE, StreamItem, StreamOptions, WINDOW_CHECK, planned_end, retry_delay};
use crate::domain::{Deadline, Error, Kind, Result};
use crate::engine::{Dispatch, Handover, OpenStream, Presence, QueueEvents, Subscription, Window};

/// What the transport is offered.
pub(super) enum Offer {
    /// Messages, as long as they are there.
    Messages(Shelf),
    /// Anything else.
    Notice(StreamItem),
}

pub(super) struct Reader {
    pub(super) dispatch: Dispatch,
    pub(super) drain: CancellationToken,
    pub(super) subscription: Subscription,
    pub(super) options: StreamOptions,
    pub(super) window: Arc<Window>,
    pub(super) _followed: Arc<QueueEvents>,
    pub(super) _open: OpenStream,
    pub(super) presence: Presence,
    /// How many messages may still come; none for no end.
    pub(super) left: Option<usize>,
    /// The batch that was offered last.
    pub(super) shelf: Option<Shelf>,
    /// The last look at the window failed: the next one is not hurried.
    pub(super) look_failed: bool,
    pub(super) ends: Option<Instant>,
    pub(super) heartbeat: Instant,
    pub(super) deadline: Deadline,
}

type Sender = mpsc::Sender<Result<Offer>>;

/// How a stream ends.
enum End {
    Closing(ClosingReason),
    Failed(Error),
    Dropped(Error),
    /// All messages that were wanted were offered.
    Finished,
    Gone,
}

impl From<Result<ClosingReason>> for End {
    fn from(planned: Result<ClosingReason>) -> Self {
        planned.map_or_else(Self::Failed, Self::Closing)
    }
}

impl Reader {
    pub(super) async fn run(mut self, sender: Sender) {
        let end = loop {
            let place = match self.place(&sender).await {
                Ok(place) => place,
                Err(end) => break end,
            };
            match self.next(&sender).await {
                Ok(offer) => place.send(Ok(offer)),
                Err(end) => {
                    drop(place);
                    break end;
                }
            }
        };
        // Of what was offered last nobody says yet whether it was taken; what was not goes back as it is dropped.
        if !matches!(end, End::Finished) {
            self.take_back();
        }
        self.end(&sender, end).await;
    }

    /// Waits until the client has taken what it was offered. Meanwhile nothing is read for it, and it gets no heartbeat
    /// either; what it does not take for half of the visibility timeout goes back, so that it never gets what may be
    /// another's by then.
    async fn place<'a>(&mut self, sender: &'a Sender) -> Result<mpsc::Permit<'a, Result<Offer>>, End> {
        if let Ok(place) = sender.try_reserve() {
            return Ok(place);
        }
        self.subscription.set_demand(0);
        let patience_ends = Instant::now() + self.options.order.visibility_timeout.span() / 2;
        let mut is_patient = true;
        loop {
            tokio::select! {
                place = sender.reserve() => return place.map_err(|_| End::Gone),
                () = sleep_until(patience_ends), if is_patient => {
                    is_patient = false;
                    self.take_back();
                    self.subscription.withdraw();
                }
                planned = planned_end(&self.drain, self.ends, self.deadline) => return Err(planned.into()),
            }
        }
    }

    /// What comes next, for a client that is ready to take it.
    async fn next(&mut self, sender: &Sender) -> Result<Offer, End> {
        loop {
            if self.left == Some(0) {
                return Err(End::Finished);
            }
            self.presence.set_in_flight(self.window.in_flight());
            let room = self.window.room().min(self.left.unwrap_or(usize::MAX));
            self.subscription.set_demand(room);
            let look = Instant::now() + WINDOW_CHECK;
            let hurried = self.window.next_expiry().filter(|_| !self.look_failed);
            let look = hurried.map_or(look, |expiry| expiry.min(look));
            tokio::select! {
                handover = self.subscription.next() => match handover {
                    Ok(handover) => return Ok(self.offer(handover)),
                    Err(error) => return Err(match error.kind() {
                        Kind::QueueNotFound => End::Dropped(error),
                        Kind::Draining => End::Closing(ClosingReason::Draining),
                        _ => End::Failed(error),
                    }),
                },
                () = self.window.changed() => {}
                () = sleep_until(look), if room == 0 => {
                    let looked = self.dispatch.check_window(&self.options.order.queue, &self.window).await;
                    // After another failure the next look comes soon.
                    self.look_failed = looked.is_err();
                    if let Err(error) = looked && error.kind() == Kind::QueueNotFound {
                        return Err(End::Dropped(error));
                    }
                }
                () = sleep_until(self.heartbeat) => {
                    self.heartbeat = Instant::now() + self.options.heartbeat_interval;
                    return Ok(Offer::Notice(StreamItem::Heartbeat { in_flight: self.window.in_flight() }));
                }
                () = sender.closed() => return Err(End::Gone),
                planned = planned_end(&self.drain, self.ends, self.deadline) => return Err(planned.into()),
            }
        }
    }

    /// Counts messages as held by the client.
    fn offer(&mut self, handover: Handover) -> Offer {
        let receipts = handover.deliveries().iter().map(|delivery| delivery.receipt);
        self.window.take(receipts, self.options.order.visibility_timeout.span());
        self.presence.set_in_flight(self.window.in_flight());
        if let Some(left) = &mut self.left {
            *left -= handover.deliveries().len();
        }
        self.heartbeat = Instant::now() + self.options.heartbeat_interval;
        let shelf = Shelf::of(handover);
        self.shelf = Some(shelf.clone());
        Offer::Messages(shelf)
    }

    /// Gives back the messages that the client was offered and has not taken.
    fn take_back(&mut self) {
        let Some(untaken) = self.shelf.take().and_then(|shelf| shelf.take()) else {
            return;
        };
        self.window.free_deliveries(untaken.deliveries().iter().map(|delivery| delivery.receipt));
        self.presence.set_in_flight(self.window.in_flight());
        if let Some(left) = &mut self.left {
            *left += untaken.deliveries().len();
        }
    }

    async fn end(&self, sender: &Sender, end: End) {
        match end {
            End::Closing(reason) => self.close(sender, reason).await,
            End::Dropped(error) => {
                self.close(sender, ClosingReason::QueueDropped).await;
                let _ = timeout(GOODBYE, sender.send(Err(error))).await;
            }
            End::Failed(error) => {
                let _ = timeout(GOODBYE, sender.send(Err(error))).await;
            }
            End::Finished | End::Gone => {}
        }
    }

    /// Says goodbye; a client that does not read must not hold up the end.
    async fn close(&self, sender: &Sender, reason: ClosingReason) {
        let closing = StreamItem::Closing { reason, retry_delay: retry_delay() };
        let _ = timeout(GOODBYE, sender.send(Ok(Offer::Notice(closing)))).await;
    }
}

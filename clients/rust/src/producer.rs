//! Producing: any number of tasks send over one stream.

mod driver;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::Code;

use self::driver::{Driver, Item};
use crate::call::MAX_WIRE_BYTES;
use crate::life::Life;
use crate::message::IntoMessage;
use crate::pb::OutgoingMessage;
use crate::pb::queue_service_client::QueueServiceClient;
use crate::{Client, Error, Sent, Service};

/// How a producer works. Its methods are the options; [`start`](Self::start) begins.
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `start`"]
pub struct ProducerBuilder {
    stub: QueueServiceClient<Service>,
    queue: String,
    idempotent: bool,
    max_in_flight: usize,
    timeout: Duration,
    waits: bool,
    life: Arc<Life>,
}

impl ProducerBuilder {
    pub(crate) fn new(client: &Client, queue: &str) -> Self {
        Self {
            stub: client.raw().queues,
            queue: queue.to_owned(),
            idempotent: false,
            max_in_flight: 10_000,
            timeout: client.timeout(),
            waits: true,
            life: client.inner.life.clone(),
        }
    }

    /// Whether a message waits for a stream that cannot be opened now. Else its send fails as [unsent](Error::is_unsent).
    pub(crate) fn waits(mut self, waits: bool) -> Self {
        self.waits = waits;
        self
    }

    /// Gives each message a deduplication id, unless it has one, so that it is sent again after a stream broke.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// How many messages may be unanswered; further sends wait. 10,000 without this. With none, every send is refused.
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.max_in_flight = messages.min(Semaphore::MAX_PERMITS);
        self
    }

    /// How long a send takes at most, in place of the client's default for calls.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Begins, within a runtime of tokio. The stream is opened with the first send.
    pub fn start(self) -> Producer {
        let (items, received) = mpsc::unbounded_channel();
        tokio::spawn(Driver::new(self.stub.clone(), self.queue.clone(), self.waits, received).run());
        let window = Arc::new(Semaphore::new(self.max_in_flight));
        Producer { shared: Arc::new(Shared { settings: self, items, window }) }
    }
}

/// Sends messages of many tasks over one stream. It is cheap to clone, and clones share the stream.
///
/// Each send has its own answer. When the stream breaks, messages with a deduplication id are sent again, and others fail with
/// an unknown outcome. The stream ends with the last clone.
#[derive(Clone, Debug)]
pub struct Producer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: ProducerBuilder,
    items: mpsc::UnboundedSender<Item>,
    /// Has a permit for each message that may be unanswered.
    window: Arc<Semaphore>,
}

impl Producer {
    /// Sends a message; waits while too many are unanswered.
    ///
    /// # Errors
    ///
    /// What `Send` would have said of this message.
    pub async fn send(&self, message: impl IntoMessage) -> Result<Sent, Error> {
        let settings = &self.shared.settings;
        let mut message = message.into_message()?;
        if settings.idempotent {
            message = message.idempotent();
        }
        self.deliver(message, settings.timeout).await
    }

    pub(crate) async fn deliver(&self, message: OutgoingMessage, limit: Duration) -> Result<Sent, Error> {
        let Shared { items, window, settings } = &*self.shared;
        settings.life.check_sending()?;
        let _under_way = settings.life.streams.begin();
        if settings.max_in_flight == 0 {
            return Err(Error::local(Code::InvalidArgument, "max_in_flight has to be at least 1"));
        }
        // Less what surrounds a message in its frame.
        if message.encoded_len() > MAX_WIRE_BYTES - 1024 {
            return Err(Error::too_large());
        }
        let claim = Arc::new(AtomicBool::new(false));
        // Once the sender has claimed the message, the driver leaves it alone.
        let has_left = || claim.swap(true, AcqRel);
        let closed = || Error::local(Code::Cancelled, "the producer is closed");
        let sending = async {
            let permit = window.clone().acquire_owned().await.map_err(|_| closed())?;
            let (reply, answer) = oneshot::channel();
            let claim = Some(claim.clone());
            let item = Item { message, reply, claim, repeats: 0, outcome_unknown: false, _permit: permit };
            items.send(item).map_err(|_| closed())?;
            // The driver answers every message that it has sent, unless its runtime ends.
            answer.await.map_err(|_| Error::broken("there is no stream").with_outcome_unknown(has_left()))?
        };
        let late = |_| Error::deadline_exceeded().with_outcome_unknown(has_left());
        timeout(limit, sending).await.map_err(late)?
    }

    /// Waits for the answers to what is under way, and takes nothing more, from clones neither.
    pub async fn close(self) {
        let Shared { settings, window, .. } = &*self.shared;
        let all = u32::try_from(settings.max_in_flight).unwrap_or(u32::MAX);
        // A window that is closed already is empty.
        let _ = window.acquire_many(all).await.map(tokio::sync::SemaphorePermit::forget);
        window.close();
    }
}

//! Sends: a lone one is a unary call, and those at the same time share a stream, which the client keeps for their queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::client::Inner;
use crate::life::closed;
use crate::pb::{SendRequest, SendResponse};
use crate::time::in_time;
use crate::{Client, Error, Producer, ProducerBuilder, Sent};

/// More sends than there can be at a time.
const ALL: u32 = 1 << 28;

/// How long a stream is kept without a send.
const KEPT: Duration = Duration::from_secs(10);

/// The bytes of a message that is better sent alone, so that others need not wait for it.
const LARGE: usize = 1 << 20;

/// What a client knows of its sends.
pub(crate) struct Sends {
    /// Lacks a permit for each that is under way.
    idle: Semaphore,
    streams: Mutex<HashMap<String, Stream>>,
}

struct Stream {
    producer: Producer,
    used: Instant,
}

impl Default for Sends {
    fn default() -> Self {
        Self { idle: Semaphore::new(ALL as usize), streams: Mutex::default() }
    }
}

impl Sends {
    fn streams(&self) -> MutexGuard<'_, HashMap<String, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Closes the client, and its clones with it: stops its consumers as by their [`Stopper`](crate::Stopper), ends its
    /// watchers, and waits for handlers that run and for what is being sent. Whatever is asked of them or of their queues,
    /// producers and messages later fails at once with `CANCELLED`, and nothing is sent. A handler that calls this has to
    /// settle its message before.
    ///
    /// Only that waiting needs it: consumers, watchers and producers have an end of their own, and the connection ends with
    /// the last clone of the client.
    pub async fn close(self) {
        let Inner { sends, life, .. } = &*self.inner;
        life.begin_to_close().await;
        // They are all idle for ever if it is closed already.
        let _ = sends.idle.acquire_many(ALL).await.map(tokio::sync::SemaphorePermit::forget);
        sends.idle.close();
        life.close(self.timeout()).await;
        sends.streams().clear();
    }

    pub(crate) async fn send(
        self,
        request: SendRequest,
        timeout: Option<Duration>,
    ) -> Result<SendResponse, Error> {
        let _under_way = self.inner.sends.idle.acquire().await.map_err(|_| closed())?;
        let alone = self.inner.sends.idle.available_permits() + 1 == ALL as usize;
        if alone || request.encoded_len() > LARGE {
            return self.unary(&request, timeout).await;
        }
        let limit = timeout.unwrap_or(self.timeout());
        let deadline = in_time(limit);
        match self.stream(&request.queue).deliver(request.clone().into(), limit).await {
            Ok(Sent { msg_id, deduplicated }) => Ok(SendResponse { msg_id, deduplicated }),
            // The call repeats itself, or tells why there is no stream.
            Err(error) if error.is_unsent() => {
                self.unary(&request, Some(deadline.saturating_duration_since(Instant::now()))).await
            }
            Err(error) => Err(error),
        }
    }

    /// The stream of a queue, which is opened with the first message.
    fn stream(&self, queue: &str) -> Producer {
        let mut streams = self.inner.sends.streams();
        let used = Instant::now();
        let stream = streams.entry(queue.to_owned()).or_insert_with(|| {
            tokio::spawn(end_unused(Arc::downgrade(&self.inner), queue.to_owned()));
            Stream { producer: ProducerBuilder::new(self, queue).waits(false).start(), used }
        });
        stream.used = used;
        stream.producer.clone()
    }
}

/// Lets a stream go when it was not used for a while. It ends with the last send that still has it.
async fn end_unused(client: Weak<Inner>, queue: String) {
    let mut due = Instant::now() + KEPT;
    loop {
        sleep_until(due).await;
        let Some(client) = client.upgrade() else { return };
        let mut streams = client.sends.streams();
        due = match streams.get(&queue) {
            Some(stream) if stream.used + KEPT > Instant::now() => stream.used + KEPT,
            _ => return drop(streams.remove(&queue)),
        };
    }
}

//! The task behind a producer: it keeps a Produce stream open, makes frames, and passes the answers on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel};
use std::time::Duration;

use futures_util::stream::poll_fn;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::Streaming;

use crate::pb::queue_service_client::QueueServiceClient;
use crate::pb::{OutgoingMessage, ProduceRequest, ProduceResponse, ProduceStarted};
use crate::time::{Pauses, duration};
use crate::{Error, Sent, Service};

/// One message on its way.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) message: OutgoingMessage,
    pub(super) reply: oneshot::Sender<Result<Sent, Error>>,
    /// Claimed by the driver when the message leaves, or by its sender to give up before that. `None` once it has left.
    pub(super) claim: Option<Arc<AtomicBool>>,
    pub(super) repeats: u32,
    pub(super) outcome_unknown: bool,
    /// Its place in the window, which becomes free with the answer.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Item {
    /// The message to be sent now, if anybody still waits for its answer.
    fn leave(mut self) -> Option<Self> {
        let given_up = self.claim.take().is_some_and(|claim| claim.swap(true, AcqRel));
        (!given_up && !self.reply.is_closed()).then_some(self)
    }

    fn bytes(&self) -> usize {
        self.message.message.len() + self.message.headers.len()
    }

    fn answer(self, result: Result<Sent, Error>) {
        let told = result.map_err(|error| {
            let unknown = error.outcome_unknown() || self.outcome_unknown;
            error.with_outcome_unknown(unknown)
        });
        // Whoever sent it may have gone.
        let _ = self.reply.send(told);
    }
}

/// How often a message is sent again that the server refused for the moment.
const REPEATS: u32 = 3;

/// How long a stream may take to be confirmed.
const OPENING: Duration = Duration::from_secs(30);

pub(super) struct Driver {
    stub: QueueServiceClient<Service>,
    queue: String,
    /// Whether messages wait for a stream that cannot be opened now.
    waits: bool,
    items: mpsc::UnboundedReceiver<Item>,
    waiting: VecDeque<Item>,
    /// Messages that the server refused for the moment, until when they wait.
    later: Vec<(Instant, Item)>,
    /// Frames by their first sequence number.
    unanswered: BTreeMap<u64, Vec<Item>>,
    next_sequence: u64,
    abandoned: bool,
}

/// An open stream.
struct Open {
    requests: Option<mpsc::UnboundedSender<ProduceRequest>>,
    /// The limits, once the server has told them.
    started: Option<ProduceStarted>,
    heard: Instant,
    closing: Option<Option<Duration>>,
}

impl Driver {
    pub(super) fn new(
        stub: QueueServiceClient<Service>,
        queue: String,
        waits: bool,
        items: mpsc::UnboundedReceiver<Item>,
    ) -> Self {
        Self {
            stub,
            queue,
            waits,
            items,
            waiting: VecDeque::new(),
            later: Vec::new(),
            unanswered: BTreeMap::new(),
            next_sequence: 0,
            abandoned: false,
        }
    }

    pub(super) async fn run(mut self) {
        let mut pauses = Pauses::up_to(Duration::from_secs(5));
        loop {
            // A stream is opened for a message that somebody still waits for.
            self.waiting.retain(|item| !item.reply.is_closed());
            while self.waiting.is_empty() && self.later.is_empty() {
                match self.items.recv().await {
                    Some(item) => self.waiting.push_back(item),
                    None => return,
                }
            }
            let asked = match self.stream(&mut pauses).await {
                Ok(asked) => {
                    self.send_again(None);
                    asked
                }
                Err(error) => {
                    tracing::debug!(queue = self.queue, %error, "a producer's stream has ended");
                    self.send_again(Some(&error));
                    self.without_stream(&error);
                    error.retry_delay()
                }
            };
            if self.abandoned && self.waiting.is_empty() && self.later.is_empty() {
                return;
            }
            self.pause(pauses.next(asked)).await;
        }
    }

    /// Takes unanswered messages back. After a planned end these are what the server has not read, and so not applied; after
    /// a break nobody knows, so those without a deduplication id fail.
    fn send_again(&mut self, broken: Option<&Error>) {
        for mut item in std::mem::take(&mut self.unanswered).into_values().flatten().rev().collect::<Vec<_>>()
        {
            item.outcome_unknown |= broken.is_some();
            match broken {
                Some(error) if item.message.deduplication_id.is_empty() => item.answer(Err(error.clone())),
                _ => self.waiting.push_front(item),
            }
        }
    }

    /// Decides about messages that wait, after a stream broke or was not opened.
    fn without_stream(&mut self, error: &Error) {
        if !self.waits {
            self.waiting.retain(|item| item.claim.is_none());
        }
        if error.is_final() {
            let unsent = error.clone().with_outcome_unknown(false);
            self.waiting.drain(..).for_each(|item| item.answer(Err(unsent.clone())));
        }
    }

    async fn pause(&mut self, pause: Duration) {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                // Without an answer its sender knows that there is no stream.
                Some(item) = self.items.recv(), if !self.waits => drop(item),
            }
        }
    }

    /// Opens a stream and serves it to its end. It gives the delay that the server asks for.
    async fn stream(&mut self, pauses: &mut Pauses) -> Result<Option<Duration>, Error> {
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let opening = self.stub.produce(poll_fn(move |context| outgoing.poll_recv(context)));
        let mut responses =
            timeout(OPENING, opening).await.map_err(|_| Error::deadline_exceeded())??.into_inner();
        let now = Instant::now();
        let mut open = Open { requests: Some(requests), started: None, heard: now, closing: None };
        self.serve(&mut open, &mut responses, pauses).await
    }

    async fn serve(
        &mut self,
        open: &mut Open,
        responses: &mut Streaming<ProduceResponse>,
        pauses: &mut Pauses,
    ) -> Result<Option<Duration>, Error> {
        let mut ticks = interval(Duration::from_millis(100));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut items = Vec::new();
        loop {
            tokio::select! {
                response = responses.message() => match response? {
                    Some(response) => self.response(open, response, pauses),
                    None if open.closing.is_none() && !self.unanswered.is_empty() => {
                        return Err(Error::broken("the stream has ended without an answer"));
                    }
                    None => return Ok(open.closing.flatten()),
                },
                count = self.items.recv_many(&mut items, 1000), if !self.abandoned => {
                    self.abandoned = count == 0;
                    self.waiting.extend(items.drain(..));
                }
                _ = ticks.tick() => {
                    let silence = open.started.as_ref().and_then(|started| duration(started.heartbeat_interval));
                    if open.heard.elapsed() > silence.map_or(OPENING, |interval| 2 * interval) {
                        return Err(Error::broken("the stream was silent for too long"));
                    }
                    let now = Instant::now();
                    let due = self.later.extract_if(.., |(at, _)| *at <= now).map(|(_, item)| item);
                    self.waiting.extend(due);
                }
            }
            self.send_frames(open);
            if self.abandoned && self.waiting.is_empty() && self.later.is_empty() {
                // The answers still come, and then the end.
                open.requests = None;
            }
        }
    }

    /// Puts what waits into frames, if the stream takes any.
    fn send_frames(&mut self, open: &mut Open) {
        let (Some(requests), Some(started), None) = (&open.requests, &open.started, &open.closing) else {
            return;
        };
        let most_messages = usize::try_from(started.max_frame_messages).unwrap_or(1).max(1);
        let most_bytes = usize::try_from(started.max_frame_bytes).unwrap_or(0);
        while !self.waiting.is_empty() {
            let mut bytes = 0;
            let mut frame = Vec::new();
            while let Some(item) = self.waiting.front() {
                bytes += item.bytes();
                if frame.len() == most_messages || !frame.is_empty() && bytes > most_bytes {
                    break;
                }
                frame.extend(self.waiting.pop_front().and_then(Item::leave));
            }
            if frame.is_empty() {
                continue;
            }
            let first_sequence = self.next_sequence;
            self.next_sequence += frame.len() as u64;
            let messages = frame.iter().map(|item| item.message.clone()).collect();
            let queue = self.queue.clone();
            // A stream that has broken says so by its responses.
            let _ = requests.send(ProduceRequest { queue, first_sequence, messages });
            self.unanswered.insert(first_sequence, frame);
        }
    }

    fn response(&mut self, open: &mut Open, mut response: ProduceResponse, pauses: &mut Pauses) {
        open.heard = Instant::now();
        if let Some(started) = response.started.take() {
            pauses.reset();
            open.started = Some(started);
        }
        if let Some(closing) = response.closing.take() {
            open.closing = Some(duration(closing.retry_delay));
        }
        if response.msg_ids.is_empty() {
            return;
        }
        let Some(frame) = self.unanswered.remove(&response.first_sequence) else { return };
        let mut failures: BTreeMap<usize, Error> = BTreeMap::new();
        for failure in response.failures {
            let index = usize::try_from(failure.index).unwrap_or(usize::MAX);
            failures.insert(index, failure.error.unwrap_or_default().into());
        }
        let known = |index: usize| response.deduplicated.iter().any(|at| usize::try_from(*at) == Ok(index));
        for (index, (item, msg_id)) in frame.into_iter().zip(response.msg_ids).enumerate() {
            match failures.remove(&index) {
                None => item.answer(Ok(Sent { msg_id, deduplicated: known(index) })),
                Some(error) => self.failed(item, error),
            }
        }
    }

    fn failed(&mut self, mut item: Item, error: Error) {
        item.outcome_unknown |= error.outcome_unknown();
        if !error.repeat_is_safe() || item.repeats == REPEATS {
            return item.answer(Err(error));
        }
        let pause = Duration::from_millis(100) * 2_u32.pow(item.repeats);
        let pause = pause.mul_f64(rand::random_range(0.5..1.0)).max(error.retry_delay().unwrap_or_default());
        item.repeats += 1;
        self.later.push((Instant::now() + pause, item));
    }
}

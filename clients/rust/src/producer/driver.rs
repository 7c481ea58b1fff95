//! The task behind a producer: it keeps a Produce stream open, makes frames, and passes the answers on.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::stream::poll_fn;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::Streaming;

use crate::pb::{OutgoingMessage, ProduceRequest, ProduceResponse, ProduceStarted};
use crate::time::{Pauses, duration};
use crate::{Error, Queue, Sent};

/// One message on its way.
#[derive(Debug)]
pub(super) struct Item {
    message: OutgoingMessage,
    reply: oneshot::Sender<Result<Sent, Error>>,
    repeats: u32,
    /// Its place in the window, which becomes free with the answer.
    _permit: OwnedSemaphorePermit,
}

impl Item {
    pub(super) fn new(
        message: OutgoingMessage,
        reply: oneshot::Sender<Result<Sent, Error>>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { message, reply, repeats: 0, _permit: permit }
    }

    fn bytes(&self) -> usize {
        self.message.message.len() + self.message.headers.len()
    }

    fn can_be_repeated(&self) -> bool {
        !self.message.deduplication_id.is_empty()
    }

    fn answer(self, result: Result<Sent, Error>) {
        // Whoever sent it may have gone.
        let _ = self.reply.send(result);
    }
}

/// How often a message is sent again that the server refused for the moment.
const REPEATS: u32 = 3;

/// How long a stream may take to be confirmed.
const OPENING: Duration = Duration::from_secs(30);

pub(super) struct Driver {
    queue: Queue,
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
    pub(super) fn new(queue: Queue, items: mpsc::UnboundedReceiver<Item>) -> Self {
        Self {
            queue,
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
                // What the server had not read before its planned end it does not apply.
                Ok(asked) => {
                    self.send_again(|_| true, None);
                    asked
                }
                Err(error) => {
                    tracing::debug!(queue = self.queue.name(), %error, "a producer's stream has ended");
                    self.send_again(Item::can_be_repeated, Some(&error));
                    if error.is_final() {
                        self.waiting.drain(..).for_each(|item| item.answer(Err(error.clone())));
                    }
                    error.retry_delay()
                }
            };
            if self.abandoned && self.waiting.is_empty() && self.later.is_empty() {
                return;
            }
            sleep(pauses.next(asked)).await;
        }
    }

    /// Takes unanswered messages back that may be sent again, and fails the others.
    fn send_again(&mut self, may_be: impl Fn(&Item) -> bool, error: Option<&Error>) {
        for item in std::mem::take(&mut self.unanswered).into_values().flatten().rev().collect::<Vec<_>>() {
            match error {
                Some(error) if !may_be(&item) => item.answer(Err(error.clone().with_outcome_unknown(true))),
                _ => self.waiting.push_front(item),
            }
        }
    }

    /// Opens a stream and serves it to its end. It gives the delay that the server asks for.
    async fn stream(&mut self, pauses: &mut Pauses) -> Result<Option<Duration>, Error> {
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let mut stub = self.queue.client().raw().queues;
        let opening = stub.produce(poll_fn(move |context| outgoing.poll_recv(context)));
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
                frame.extend(self.waiting.pop_front().filter(|item| !item.reply.is_closed()));
            }
            if frame.is_empty() {
                continue;
            }
            let first_sequence = self.next_sequence;
            self.next_sequence += frame.len() as u64;
            let messages = frame.iter().map(|item| item.message.clone()).collect();
            let queue = self.queue.name().to_owned();
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
        if !error.repeat_is_safe() || item.repeats == REPEATS {
            return item.answer(Err(error));
        }
        let pause = Duration::from_millis(100) * 2_u32.pow(item.repeats);
        item.repeats += 1;
        self.later.push((Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0)), item));
    }
}

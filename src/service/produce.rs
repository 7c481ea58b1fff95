//! `Produce`: many callers' sends over one stream, each message with its own verdict.
//!
//! One task a stream reads frames, hands their messages to the merger, and answers each frame when its verdicts are
//! there. It stops reading while too many messages are unanswered, while the merger has no room, and while the client
//! does not take its answers.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Request, Status, Streaming};

use super::call::{check_named, checked_caller, named_queue, request_id};
use super::convert::{Fields, closing, heartbeat, outgoing_message, queue_name};
use super::incoming::{Incoming, next};
use super::status::{to_command_error, to_repeated_command_error};
use super::stream::NO_DEADLINE;
use super::{RequestId, Service, to_status};
use crate::domain::bounds::MAX_BATCH;
use crate::domain::{Caller, ClientRole, Deadline, Error, Invalid, Kind, OutgoingMessage, QueueName, Result};
use crate::engine::merge::Verdict;
use crate::engine::{OpenStream, Presence, StreamKind};
use crate::proto::v1::{
    OutgoingMessage as WireMessage, ProduceFailure, ProduceRequest, ProduceResponse, ProduceStarted,
};
use crate::queue::{Broker, ClosingReason, GOODBYE, SendLines, SentParcel, end_of_life, retry_delay};

/// The most unanswered messages of a stream; beyond them it is not read.
const MAX_IN_FLIGHT: usize = 10_000;

/// The most bytes of a frame of several messages.
const MAX_FRAME_BYTES: usize = 1 << 20;

/// The longest silence.
const HEARTBEAT: Duration = Duration::from_secs(25);

impl Service {
    /// Opens a stream.
    pub(super) fn produce_stream(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Answers, Status> {
        let request_id = request_id(&request);
        if self.broker.drain.is_cancelled() {
            return Err(to_status(&Error::draining(), &request_id));
        }
        let caller = checked_caller(&request).map_err(|error| to_status(&error, &request_id))?;
        // Frames are answered in bursts; a client that takes none holds up itself only.
        let (sender, answers) = mpsc::channel(16);
        let producer = Producer {
            broker: Arc::clone(&self.broker),
            request_id: request_id.clone(),
            caller,
            named_queue: named_queue(&request),
            deadline: self.deadline(&request, NO_DEADLINE),
            ends: end_of_life(self.broker.max_stream_age),
            heartbeat: Instant::now() + HEARTBEAT,
            frames: request.into_inner(),
            answers: sender,
            pending: FuturesUnordered::new(),
            entering: None,
            lines: SendLines::default(),
            in_flight: 0,
            _open: self.broker.streams.open(StreamKind::Produce),
        };
        self.broker.tasks.spawn(producer.run());
        Ok(Answers { answers, request_id })
    }
}

/// The answers of one stream.
pub struct Answers {
    answers: mpsc::Receiver<Result<ProduceResponse>>,
    request_id: RequestId,
}

impl Stream for Answers {
    type Item = Result<ProduceResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = self.answers.poll_recv(context);
        answer.map(|answer| answer.map(|answer| answer.map_err(|error| to_status(&error, &self.request_id))))
    }
}

/// A frame whose verdicts are on their way.
type Pending = BoxFuture<'static, (Frame, Result<SentParcel>)>;

/// A frame for which the merger has no room yet.
type Entering = BoxFuture<'static, (Frame, Verdict<SentParcel>)>;

struct Producer {
    broker: Arc<Broker>,
    request_id: RequestId,
    caller: Caller,
    named_queue: Option<Bytes>,
    deadline: Deadline,
    ends: Option<Instant>,
    heartbeat: Instant,
    frames: Streaming<ProduceRequest>,
    answers: mpsc::Sender<Result<ProduceResponse>>,
    pending: FuturesUnordered<Pending>,
    /// No other frame is read while one enters, or it could overtake.
    entering: Option<Entering>,
    lines: SendLines,
    in_flight: usize,
    _open: OpenStream,
}

/// What a frame's answer is made of, while its verdicts are on their way.
struct Frame {
    first_sequence: u64,
    length: usize,
    /// Refused messages, by their places in rising order.
    refused: Vec<(usize, Error)>,
    /// The frame's part of what its client has under way.
    presence: Presence,
}

/// How a stream goes on.
enum Next {
    Go,
    /// Nothing more is read; what is pending is answered.
    Finish,
    Fail(Error),
    Gone,
}

impl Producer {
    async fn run(mut self) {
        let started = ProduceStarted {
            stream_id: self.request_id.to_string(),
            replica: self.broker.replica.clone(),
            max_in_flight: i32::try_from(MAX_IN_FLIGHT).unwrap_or(i32::MAX),
            max_frame_messages: i32::try_from(MAX_BATCH).unwrap_or(i32::MAX),
            max_frame_bytes: i32::try_from(MAX_FRAME_BYTES).unwrap_or(i32::MAX),
            heartbeat_interval: prost_types::Duration::try_from(HEARTBEAT).ok(),
        };
        let mut next = self.send(ProduceResponse { started: Some(started), ..Default::default() }).await;
        while matches!(next, Next::Go) {
            next = self.step().await;
        }
        let error = match next {
            Next::Go | Next::Gone => return,
            Next::Finish => None,
            Next::Fail(error) => Some(error),
        };
        // Those who wait get their verdicts first, whatever ends the stream.
        while self.entering.is_some() || !self.pending.is_empty() {
            let (frame, sent) = self.verdict().await;
            if matches!(self.answer(frame, sent).await, Next::Gone) {
                return;
            }
        }
        if let Some(error) = error {
            let _ = timeout(GOODBYE, self.answers.send(Err(error))).await;
        }
    }

    async fn step(&mut self) -> Next {
        let reads = self.entering.is_none() && self.in_flight < MAX_IN_FLIGHT;
        let (ends, deadline, beat) = (self.ends, self.deadline.instant(), self.heartbeat);
        let waits = self.entering.is_some() || !self.pending.is_empty();
        let (broker, answers) = (Arc::clone(&self.broker), self.answers.clone());
        let aged = async {
            match ends {
                Some(ends) => sleep_until(ends).await,
                None => pending().await,
            }
        };
        // Apart, so that each branch borrows only what it needs.
        let (frames, verdicts) = (&mut self.frames, (&mut self.entering, &mut self.pending));
        tokio::select! {
            (frame, sent) = verdict(verdicts.0, verdicts.1), if waits => self.answer(frame, sent).await,
            frame = next(frames), if reads => match frame {
                Ok(Incoming::Command(frame)) => self.take(frame).await,
                Ok(Incoming::End) => Next::Finish,
                Ok(Incoming::Gone) => Next::Gone,
                Err(error) => Next::Fail(error),
            },
            () = broker.drain.cancelled() => self.close(ClosingReason::Draining).await,
            () = aged => self.close(ClosingReason::StreamAge).await,
            () = sleep_until(deadline) => Next::Fail(Error::deadline_exceeded()),
            () = answers.closed() => Next::Gone,
            () = sleep_until(beat) => self.beat().await,
        }
    }

    async fn verdict(&mut self) -> (Frame, Result<SentParcel>) {
        verdict(&mut self.entering, &mut self.pending).await
    }

    /// Checks a frame's messages and hands the good ones in.
    async fn take(&mut self, request: ProduceRequest) -> Next {
        // An answer for each of so many could be larger than any reply.
        if let Some(invalid) = too_many(&request.messages) {
            let mut fields = Fields::default();
            fields.refuse("messages", invalid);
            return fields.finish(None::<()>).map_or_else(Next::Fail, |()| Next::Go);
        }
        let mut frame = Frame {
            first_sequence: request.first_sequence,
            length: request.messages.len(),
            refused: Vec::new(),
            presence: Presence::default(),
        };
        let known = self.broker.learn_policies(self.deadline).await;
        let (queue, messages) = match known.and_then(|()| self.check(request, &mut frame)) {
            Ok(checked) => checked,
            Err(error) => {
                frame.refused = (0..frame.length).map(|place| (place, error.clone())).collect();
                return self.answer_now(frame).await;
            }
        };
        if messages.is_empty() {
            return self.answer_now(frame).await;
        }
        self.in_flight += frame.length;
        frame.presence = self.broker.clients.stream(&self.caller, ClientRole::Producer, queue.as_str());
        frame.presence.set_in_flight(frame.length);
        let broker = Arc::clone(&self.broker);
        let place = self.lines.place(&queue, &messages);
        let mut entering: Entering =
            Box::pin(async move { (frame, broker.merging.send_in_line(place, queue, messages).await) });
        // There is room as a rule.
        match futures_util::poll!(entering.as_mut()) {
            Poll::Ready((frame, verdict)) => self.pending.push(waiting(frame, verdict)),
            Poll::Pending => self.entering = Some(entering),
        }
        Next::Go
    }

    /// The queue and the good messages of a frame; the refused ones are remembered in it.
    fn check(&self, request: ProduceRequest, frame: &mut Frame) -> Result<(QueueName, Vec<OutgoingMessage>)> {
        let mut fields = Fields::default();
        if let Some(named) = &self.named_queue {
            check_named(&mut fields, named, &request.queue);
        }
        let queue = queue_name(&mut fields, request.queue);
        if let Some(invalid) = too_large(&request.messages) {
            fields.refuse("messages", invalid);
        }
        let queue = fields.finish(queue)?;
        let terms = self.broker.rules.of_queue(Some(&queue));
        let mut messages = Vec::with_capacity(request.messages.len());
        for (place, message) in request.messages.into_iter().enumerate() {
            let mut fields = Fields::default();
            let message = outgoing_message(&mut fields, terms, message);
            match fields.finish(message) {
                Ok(message) => messages.push(message),
                Err(error) => frame.refused.push((place, error)),
            }
        }
        Ok((queue, messages))
    }

    async fn answer(&mut self, frame: Frame, sent: Result<SentParcel>) -> Next {
        self.in_flight -= frame.length;
        self.reply(frame, sent).await
    }

    /// Answers a frame of which nothing was handed in.
    async fn answer_now(&mut self, frame: Frame) -> Next {
        self.reply(frame, Ok(Vec::new())).await
    }

    async fn reply(&mut self, frame: Frame, sent: Result<SentParcel>) -> Next {
        let answer = answer(frame, sent, &self.request_id);
        self.send(answer).await
    }

    async fn close(&mut self, reason: ClosingReason) -> Next {
        let notice = ProduceResponse { closing: Some(closing(reason, retry_delay())), ..Default::default() };
        match self.send(notice).await {
            Next::Go => Next::Finish,
            gone => gone,
        }
    }

    async fn beat(&mut self) -> Next {
        let beat = ProduceResponse { heartbeat: Some(heartbeat(self.in_flight)), ..Default::default() };
        self.send(beat).await
    }

    /// Gives the client something; one that takes nothing must not hold up the server's end.
    async fn send(&mut self, answer: ProduceResponse) -> Next {
        self.heartbeat = Instant::now() + HEARTBEAT;
        let answer = match self.answers.try_send(Ok(answer)) {
            Ok(()) => return Next::Go,
            Err(mpsc::error::TrySendError::Closed(_)) => return Next::Gone,
            Err(mpsc::error::TrySendError::Full(answer)) => answer,
        };
        let drained = async {
            self.broker.drain.cancelled().await;
            tokio::time::sleep(GOODBYE).await;
        };
        tokio::select! {
            sent = self.answers.send(answer) => if sent.is_ok() { Next::Go } else { Next::Gone },
            () = drained => Next::Gone,
        }
    }
}

fn waiting(frame: Frame, verdict: Verdict<SentParcel>) -> Pending {
    Box::pin(async move { (frame, verdict.wait().await) })
}

/// The next verdict. A frame that gets its place meanwhile is pending from then on.
async fn verdict(
    entering: &mut Option<Entering>,
    pending: &mut FuturesUnordered<Pending>,
) -> (Frame, Result<SentParcel>) {
    loop {
        let enters = poll_fn(|context| match entering.as_mut() {
            Some(frame) => frame.as_mut().poll(context),
            None => Poll::Pending,
        });
        let (frame, verdict) = tokio::select! {
            Some(verdict) = pending.next(), if !pending.is_empty() => return verdict,
            entered = enters => entered,
        };
        *entering = None;
        pending.push(waiting(frame, verdict));
    }
}

fn too_many(messages: &[WireMessage]) -> Option<Invalid> {
    let count = messages.len();
    (count > MAX_BATCH).then(|| {
        let description = format!("a frame has at most {MAX_BATCH} messages; this one has {count}");
        Invalid::new(Kind::InvalidCount, description).with("limit", MAX_BATCH)
    })
}

/// A frame of one message may be as large as a `Send`.
fn too_large(messages: &[WireMessage]) -> Option<Invalid> {
    let bytes: usize = messages.iter().map(|message| message.message.len() + message.headers.len()).sum();
    if messages.len() > 1 && bytes > MAX_FRAME_BYTES {
        let description = format!(
            "a frame of several messages takes at most {MAX_FRAME_BYTES} bytes; this one takes {bytes}"
        );
        return Some(Invalid::new(Kind::MessageTooLarge, description).with("limit", MAX_FRAME_BYTES));
    }
    None
}

/// Puts refusals and verdicts together, in the order of the frame.
fn answer(frame: Frame, sent: Result<SentParcel>, request_id: &RequestId) -> ProduceResponse {
    let mut refused = frame.refused.into_iter().peekable();
    let (mut sent, failed) = match sent {
        Ok(sent) => (sent.into_iter(), None),
        Err(error) => (Vec::new().into_iter(), Some(error)),
    };
    let mut answer = ProduceResponse {
        first_sequence: frame.first_sequence,
        msg_ids: Vec::with_capacity(frame.length),
        ..Default::default()
    };
    let mut logged = None;
    for place in 0..frame.length {
        let verdict = match refused.next_if(|(refused, _)| *refused == place) {
            Some((_, error)) => Err(error),
            None => sent.next().unwrap_or_else(|| Err(failed.clone().unwrap_or_else(no_verdict))),
        };
        let index = i32::try_from(place).unwrap_or(i32::MAX);
        answer.msg_ids.push(verdict.as_ref().map_or(0, |sent| sent.msg_id));
        match verdict {
            Ok(sent) if sent.deduplicated => answer.deduplicated.push(index),
            Ok(_) => {}
            Err(error) => {
                // One line for what all messages of a frame suffer.
                let error = match logged.replace(error.kind()) == Some(error.kind()) {
                    true => to_repeated_command_error(error, request_id),
                    false => to_command_error(error, request_id),
                };
                answer.failures.push(ProduceFailure { index, error: Some(error) });
            }
        }
    }
    answer
}

fn no_verdict() -> Error {
    Error::internal("a message of a frame has no verdict")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Sent;

    fn frame(length: usize, refused: &[usize]) -> Frame {
        let refused = refused.iter().map(|&place| (place, Error::draining())).collect();
        Frame { first_sequence: 7, length, refused, presence: Presence::default() }
    }

    fn id() -> RequestId {
        RequestId::of(&http::HeaderMap::new())
    }

    #[test]
    fn refusals_and_verdicts_come_in_the_order_of_the_frame() {
        let of = |msg_id, deduplicated| Ok(Sent { msg_id, deduplicated });
        let sent = Ok(vec![of(10, false), Err(Error::deadline_exceeded()), of(11, true)]);
        let answer = answer(frame(5, &[0, 2]), sent, &id());
        assert_eq!((answer.first_sequence, answer.msg_ids), (7, vec![0, 10, 0, 0, 11]));
        assert_eq!(answer.deduplicated, [4]);
        let failed: Vec<i32> = answer.failures.iter().map(|failure| failure.index).collect();
        assert_eq!(failed, [0, 2, 3]);
        assert!(
            answer.failures.iter().all(|failure| failure.error.as_ref().is_some_and(|error| error.code != 0))
        );
    }

    #[test]
    fn a_failed_flush_fails_every_message_that_was_handed_in() {
        let answer = answer(frame(3, &[1]), Err(Error::deadline_exceeded()), &id());
        assert_eq!(answer.msg_ids, [0, 0, 0]);
        assert_eq!(answer.failures.len(), 3);
    }

    #[test]
    fn a_frame_of_one_message_may_be_larger_than_others() {
        let large = WireMessage { message: "1".repeat(MAX_FRAME_BYTES + 1), ..Default::default() };
        assert_eq!(too_large(std::slice::from_ref(&large)), None);
        let refused = too_large(&[large, WireMessage::default()]).map(|invalid| invalid.kind);
        assert_eq!(refused, Some(Kind::MessageTooLarge));
    }
}

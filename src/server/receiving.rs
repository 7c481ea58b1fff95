//! The memory and the time of requests that are being received.
//!
//! What a call wants is known when all of its request is there. Until then nothing else bounds it: ten thousand callers
//! who send a megabyte each at the same time would take ten gigabytes. So the bytes of all requests that are on their way
//! are counted, and those that come beyond the limit are refused in the middle, before anything was done. Of a stream, only
//! the command that has begun counts: the others are worked off before more is read. And who stalls in the middle gives
//! back its place in time, or a few such callers would lock out all others.

use std::mem::replace;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep_until};

use crate::domain::{Deadline, Error, Kind};
use crate::engine::{Parked, ParkedCall, Refusals};
use crate::service::{RequestId, to_status};

/// The most bytes of all requests that are not there as a whole yet: sixteen of the largest.
const MOST_BYTES: usize = 128 << 20;

/// So much of each is not counted, so that whatever others do, small requests are taken.
const UNCOUNTED: usize = 16 << 10;

/// The longest silence in the middle of a request or command, which is also what a call has by default. It is not
/// shorter, because a client's streams share its connection's window: those that the server does not read hold up others.
const SILENCE: Duration = Duration::from_secs(30);

/// The bytes before each message: whether it is compressed, and its length.
const HEAD: usize = 5;

/// What the requests of a server take that are being received.
#[derive(Debug, Default)]
pub(super) struct Receiving {
    bytes: AtomicUsize,
    refusals: Mutex<Refusals>,
}

/// A request's body, counted until it ends.
pub(super) struct Received<B> {
    body: B,
    part: Option<Part>,
}

/// What a single request takes.
struct Part {
    all: Arc<Receiving>,
    reads: Reads,
    counted: usize,
    request_id: RequestId,
    /// Where the call is parked while it waits for more.
    parked: Option<Parked>,
    /// A wait for more, and what ends it.
    late: Option<(Pin<Box<Sleep>>, Option<ParkedCall>)>,
}

/// What has come and is not worked off.
enum Reads {
    Whole { come: usize, deadline: Deadline },
    Commands(Command),
}

/// The command of a stream that has begun, with its head.
#[derive(Debug, Default)]
struct Command {
    come: usize,
    /// Without its head, whose bytes give it.
    length: usize,
}

impl<B> Received<B> {
    /// The body of a call that reads all of it before it begins, until its deadline.
    pub(super) fn whole(body: B, all: &Arc<Receiving>, request_id: RequestId, deadline: Deadline) -> Self {
        Self::new(body, all, request_id, Reads::Whole { come: 0, deadline })
    }

    /// The body of a stream, which is read command by command, and no further than those are worked off.
    pub(super) fn in_commands(body: B, all: &Arc<Receiving>, request_id: RequestId) -> Self {
        Self::new(body, all, request_id, Reads::Commands(Command::default()))
    }

    fn new(body: B, all: &Arc<Receiving>, request_id: RequestId, reads: Reads) -> Self {
        let part = Part { all: Arc::clone(all), reads, counted: 0, request_id, parked: None, late: None };
        Self { body, part: Some(part) }
    }

    /// The call is parked while it waits for more of its body.
    pub(super) fn parking(mut self, parked: &Parked) -> Self {
        if let Some(part) = &mut self.part {
            part.parked = Some(parked.clone());
        }
        self
    }
}

impl Command {
    /// More of the stream has come. What is complete is forgotten.
    fn take(&mut self, mut data: &[u8]) {
        while let Some((&first, rest)) = data.split_first() {
            let next = match self.come {
                0 => rest,
                1..HEAD => {
                    self.length = (self.length << 8) | usize::from(first);
                    rest
                }
                come => &data[data.len().min(HEAD + self.length - come)..],
            };
            self.come += data.len() - next.len();
            data = next;
            if self.come >= HEAD && self.come == HEAD + self.length {
                *self = Self::default();
            }
        }
    }
}

impl Part {
    /// Counts what has come.
    fn take(&mut self, data: &[u8]) -> Result<(), Error> {
        self.late = None;
        let held = match &mut self.reads {
            Reads::Whole { come, .. } => {
                *come += data.len();
                *come
            }
            Reads::Commands(command) => {
                command.take(data);
                command.come
            }
        };
        let counted = held.saturating_sub(UNCOUNTED);
        let before = replace(&mut self.counted, counted);
        if counted <= before {
            if counted < before {
                self.all.bytes.fetch_sub(before - counted, Ordering::Relaxed);
            }
            return Ok(());
        }
        let more = counted - before;
        if self.all.bytes.fetch_add(more, Ordering::Relaxed) + more <= MOST_BYTES {
            return Ok(());
        }
        let pause = self.all.refusals.lock().unwrap_or_else(PoisonError::into_inner).refuse();
        let why = "the requests that are being received take too much memory; nothing was applied of the part that came";
        Err(Error::new(Kind::Overloaded, why).retry_after(pause))
    }

    /// Nothing more is there yet. Waits until that has lasted too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        let deadline = match &self.reads {
            // Between two commands a client may be silent.
            Reads::Commands(Command { come: 0, .. }) => return Poll::Pending,
            Reads::Commands(_) => None,
            Reads::Whole { deadline, .. } => Some(*deadline),
        };
        let (late, _) = self.late.get_or_insert_with(|| {
            let silent = Deadline::within(SILENCE);
            let late = sleep_until(deadline.map_or(silent, |deadline| deadline.min(silent)).instant());
            (Box::pin(late), self.parked.as_ref().map(Parked::park))
        });
        ready!(late.as_mut().poll(context));
        let why = "the rest did not come in time; nothing was applied of the part that came";
        Poll::Ready(Error::new(Kind::DeadlineExceeded, why))
    }

    /// What the reader of the body is told: of a whole request, the call's answer.
    fn body_error(&self, error: Error) -> BodyError {
        match self.reads {
            Reads::Whole { .. } => to_status(&error, &self.request_id).into(),
            Reads::Commands(_) => error.into(),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.counted > 0 {
            self.all.bytes.fetch_sub(self.counted, Ordering::Relaxed);
        }
    }
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl<B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin> Body for Received<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, part } = &mut *self;
        let next = Pin::new(body).poll_frame(context);
        let Some(counting) = part else { return next.map_err(Into::into) };
        let taken = match next {
            Poll::Pending => Err(ready!(counting.poll_late(context))),
            Poll::Ready(Some(Ok(frame))) => {
                counting.take(frame.data_ref().map_or(&[][..], |data| &data[..])).map(|()| frame)
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                *part = None;
                return Poll::Ready(None);
            }
        };
        let taken = taken.map_err(|error| counting.body_error(error));
        if taken.is_err() {
            *part = None;
        }
        Poll::Ready(Some(taken))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use tokio::time::Instant;
    use tonic::{Code, Status};

    use super::*;

    const FRAME: usize = 16 << 10;

    fn request_id() -> RequestId {
        RequestId::of(&http::HeaderMap::new())
    }

    /// A body whose frames come one by one, and then nothing more.
    fn body(frames: Vec<Bytes>) -> impl Body<Data = Bytes, Error = BodyError> + Unpin {
        let frames = stream::iter(frames).map(|data| Ok::<_, BodyError>(Frame::data(data)));
        StreamBody::new(frames.chain(stream::pending()))
    }

    /// A request of so many frames.
    fn request(
        all: &Arc<Receiving>,
        frames: usize,
    ) -> Received<impl Body<Data = Bytes, Error = BodyError> + Unpin> {
        let data = Bytes::from(vec![0; FRAME]);
        let frames = stream::iter(0..frames).map(move |_| Ok::<_, BodyError>(Frame::data(data.clone())));
        Received::whole(StreamBody::new(frames), all, request_id(), Deadline::within(SILENCE))
    }

    /// How many of the requests a round of frames refuses, which end so.
    async fn round(
        requests: &mut Vec<Received<impl Body<Data = Bytes, Error = BodyError> + Unpin>>,
    ) -> usize {
        let mut refused = Vec::new();
        for (index, request) in requests.iter_mut().enumerate() {
            if let Some(Err(error)) = request.frame().await {
                let status = error.downcast::<Status>().expect("a status");
                assert_eq!(status.code(), Code::Unavailable);
                assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
                refused.push(index);
            }
        }
        refused.iter().rev().for_each(|index| drop(requests.swap_remove(*index)));
        refused.len()
    }

    #[tokio::test]
    async fn ten_thousand_requests_take_no_more_than_the_limit_and_some_get_through() {
        let all = Arc::new(Receiving::default());
        let mut requests: Vec<_> = (0..10_000).map(|_| request(&all, 64)).collect();
        let mut refused = 0;
        for _ in 0..64 {
            refused += round(&mut requests).await;
            assert!(all.bytes.load(Ordering::Relaxed) <= MOST_BYTES);
        }
        assert_eq!(requests.len() + refused, 10_000);
        assert!(requests.len() >= MOST_BYTES / (64 * FRAME) - 1, "{} are left", requests.len());
        // Their ends free what they took.
        assert_eq!(round(&mut requests).await, 0);
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn small_requests_are_taken_whatever_others_take_and_one_that_is_dropped_takes_nothing() {
        let all = Arc::new(Receiving::default());
        let mut large = vec![request(&all, usize::MAX)];
        for _ in 0..=MOST_BYTES / FRAME {
            assert_eq!(round(&mut large).await, 0);
        }
        let mut others = vec![request(&all, 1), request(&all, 2)];
        assert_eq!(round(&mut others).await, 0);
        assert_eq!(round(&mut others).await, 1);
        drop((large, others));
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn of_a_stream_only_the_command_that_has_begun_is_counted() {
        let all = Arc::new(Receiving::default());
        let length = 8 << 20;
        let command = Bytes::from([&[0], &u32::to_be_bytes(length)[..], &vec![7; length as usize]].concat());
        let but_one = command.len() - 1;
        let parts = [command.slice(..but_one), command.slice(but_one..)];
        let mut streams: Vec<_> = (0..17)
            .map(|_| Received::in_commands(body([&parts[..], &parts].concat()), &all, request_id()))
            .collect();
        let mut last = streams.pop();
        for _ in 0..2 {
            for stream in &mut streams {
                stream.frame().await.expect("a frame").expect("room");
            }
            let counted = all.bytes.load(Ordering::Relaxed);
            assert_eq!(counted, streams.len() * (but_one - UNCOUNTED));
            if let Some(mut last) = last.take() {
                let error = last.frame().await.expect("an error").expect_err("no room");
                assert_eq!(error.downcast::<Error>().expect("ours").kind(), Kind::Overloaded);
            }
            for stream in &mut streams {
                stream.frame().await.expect("a frame").expect("room");
            }
            assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_command_ends_where_its_head_says_however_it_is_cut() {
        let lengths = [0_usize, 1, 300, 0, 70_000, 5];
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for length in lengths {
            bytes.push(0);
            bytes.extend(u32::try_from(length).expect("a short command").to_be_bytes());
            bytes.extend(vec![0xff; length]);
            ends.push(bytes.len());
        }
        for size in [1, 2, 3, 5, 7, 304, 16_384, bytes.len()] {
            let (mut command, mut come) = (Command::default(), 0);
            for part in bytes.chunks(size) {
                command.take(part);
                come += part.len();
                let begun = ends.iter().rfind(|&&end| end <= come).expect("a beginning");
                assert_eq!(command.come, come - begun, "after {come} bytes in parts of {size}");
            }
        }
    }

    /// How long a body is waited for, and the error at the end.
    async fn wait(
        received: &mut Received<impl Body<Data = Bytes, Error = BodyError> + Unpin>,
    ) -> (Duration, BodyError) {
        let begun = Instant::now();
        let error = received.frame().await.expect("an end").expect_err("an error");
        (begun.elapsed(), error)
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_in_the_middle_is_not_waited_for() {
        let all = Arc::new(Receiving::default());
        let half = Bytes::from([&[0, 0, 1, 0, 0][..], &[7; 40_000]].concat());
        let whole = |deadline| {
            Received::whole(body(vec![half.clone()]), &all, request_id(), Deadline::within(deadline))
        };
        for (deadline, waited) in [(SILENCE / 10, SILENCE / 10), (SILENCE * 10, SILENCE)] {
            let mut request = whole(deadline);
            request.frame().await.expect("a frame").expect("room");
            assert!(all.bytes.load(Ordering::Relaxed) > 0);
            let (took, error) = wait(&mut request).await;
            assert!(took >= waited && took < waited + Duration::from_millis(10), "{took:?}");
            assert_eq!(error.downcast::<Status>().expect("a status").code(), Code::DeadlineExceeded);
            assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
        }
        let mut stream = Received::in_commands(body(vec![half.clone()]), &all, request_id());
        stream.frame().await.expect("a frame").expect("room");
        let (took, error) = wait(&mut stream).await;
        assert!(took >= SILENCE && took < SILENCE + Duration::from_millis(10), "{took:?}");
        assert_eq!(error.downcast::<Error>().expect("ours").kind(), Kind::DeadlineExceeded);
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn between_commands_a_stream_may_be_silent() {
        let all = Arc::new(Receiving::default());
        let mut stream =
            Received::in_commands(body(vec![Bytes::from_static(&[0; HEAD])]), &all, request_id());
        stream.frame().await.expect("a frame").expect("room");
        assert!(tokio::time::timeout(SILENCE * 10, stream.frame()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_parked_while_it_waits_for_more() {
        let (all, parked) = (Arc::new(Receiving::default()), Parked::default());
        let frames = vec![Bytes::from(vec![0; FRAME])];
        let request = Received::whole(body(frames), &all, request_id(), Deadline::within(SILENCE));
        let mut request = request.parking(&parked);
        request.frame().await.expect("a frame").expect("a good one");
        assert_eq!(parked.count(), 0);
        let more = tokio::time::timeout(SILENCE / 2, request.frame()).await;
        assert!(more.is_err() && parked.count() == 1);
        request.frame().await.expect("an end").expect_err("a refusal");
        assert_eq!(parked.count(), 0);
    }
}

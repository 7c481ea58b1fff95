//! The memory of requests that are being received.
//!
//! What a call wants is known when all of its request is there. Until then nothing else bounds it: ten thousand callers
//! who send a megabyte each at the same time would take ten gigabytes. So the bytes of all requests that are on their way
//! are counted, and those that come beyond the limit are refused in the middle, before anything was done.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use crate::domain::{Error, Kind};
use crate::engine::Refusals;
use crate::service::{RequestId, to_status};

/// The most bytes of all requests that are not there as a whole yet: sixteen of the largest.
const MOST_BYTES: usize = 128 << 20;

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
    bytes: usize,
    request_id: RequestId,
}

impl<B> Received<B> {
    /// The body of a call that reads all of it before it begins.
    pub(super) fn whole(body: B, all: &Arc<Receiving>, request_id: RequestId) -> Self {
        Self { body, part: Some(Part { all: Arc::clone(all), bytes: 0, request_id }) }
    }

    /// The body of a stream, which is read command by command, and no further than those are worked off.
    pub(super) fn in_commands(body: B) -> Self {
        Self { body, part: None }
    }
}

impl Part {
    /// Counts what has come. A request that comes alone is never too large.
    fn add(&mut self, bytes: usize) -> Result<(), Error> {
        let before = self.all.bytes.fetch_add(bytes, Ordering::Relaxed);
        let others = before.saturating_sub(self.bytes);
        self.bytes += bytes;
        if others == 0 || before + bytes <= MOST_BYTES {
            return Ok(());
        }
        let pause = self.all.refusals.lock().unwrap_or_else(PoisonError::into_inner).refuse();
        let why = "the requests that are being received take too much memory; nothing was applied";
        Err(Error::new(Kind::Overloaded, why).retry_after(pause))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
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
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            self.part = None;
            return Poll::Ready(None);
        };
        let frame = frame.map_err(Into::into)?;
        let bytes = frame.data_ref().map_or(0, Buf::remaining);
        if let Some(part) = &mut self.part
            && let Err(error) = part.add(bytes)
        {
            let status = to_status(&error, &part.request_id);
            self.part = None;
            return Poll::Ready(Some(Err(status.into())));
        }
        Poll::Ready(Some(Ok(frame)))
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
    use tonic::{Code, Status};

    use super::*;

    const FRAME: usize = 16 << 10;

    /// A request whose frames come one by one, so many at most.
    fn request(
        all: &Arc<Receiving>,
        frames: usize,
    ) -> Received<impl Body<Data = Bytes, Error = BodyError> + Unpin> {
        let data = Bytes::from(vec![0; FRAME]);
        let frames = stream::iter(0..frames).map(move |_| Ok::<_, BodyError>(Frame::data(data.clone())));
        Received::whole(StreamBody::new(frames), all, RequestId::of(&http::HeaderMap::new()))
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
    async fn a_lone_request_is_never_too_large_and_one_that_is_dropped_takes_nothing() {
        let all = Arc::new(Receiving::default());
        let mut lone = vec![request(&all, usize::MAX)];
        for _ in 0..=MOST_BYTES / FRAME {
            assert_eq!(round(&mut lone).await, 0);
        }
        let mut other = vec![request(&all, 1)];
        assert_eq!(round(&mut other).await, 1);
        drop(lone);
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }
}

//! What happens around every call: a request id, the caller's deadline, and errors of the transport's own in our words.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::domain::{Deadline, Error};
use crate::service::{Peer, RequestId, of_transport, to_status};

const TIMEOUT: &str = "grpc-timeout";
const REASON: &str = "pgmq-reason";

/// Wraps the routes.
#[derive(Clone)]
pub(super) struct Around<S> {
    inner: S,
    peer: Option<Peer>,
}

impl<S> Around<S> {
    /// Puts a service in the middle.
    pub(super) fn new(inner: S) -> Self {
        Self { inner, peer: None }
    }

    /// For the calls of one connection.
    pub(super) fn of_peer(mut self, address: Arc<str>) -> Self {
        self.peer = Some(Peer(address));
        self
    }
}

impl<S, B> Service<Request<B>> for Around<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let request_id = RequestId::of(request.headers());
        request.extensions_mut().insert(request_id.clone());
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        if let Some(timeout) = request.headers().get(TIMEOUT).and_then(timeout) {
            request.extensions_mut().insert(Deadline::within(timeout));
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(match in_our_words(response.headers()) {
                Some(error) => to_status(&error, &request_id).into_http(),
                None => response,
            })
        })
    }
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_hours(count)),
        "M" => Some(Duration::from_mins(count)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The error behind an answer of the transport's own.
fn in_our_words(headers: &HeaderMap<HeaderValue>) -> Option<Error> {
    if headers.contains_key(REASON) {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    of_transport(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_at_most_eight_digits_and_a_unit() {
        let parse = |text: &str| timeout(&HeaderValue::from_str(text).expect("a header value"));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "5", "5x", "-5S", "123456789S", "5.5S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

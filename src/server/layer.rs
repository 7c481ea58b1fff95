//! What happens around every call: its context, its place among the calls under way, and errors of the transport's own in
//! our words.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;

use super::in_flight::{Entered, InFlight};
use super::receiving::{Received, Receiving};
use super::routes::Routes;
use crate::domain::{Deadline, Error};
use crate::service::{CallContext, RequestId, is_short, of_transport, reads_commands, to_status};

const TIMEOUT: &str = "grpc-timeout";
const REASON: &str = "pgmq-reason";

/// Wraps the routes, for the calls of one connection.
#[derive(Clone)]
pub(super) struct Around {
    routes: Routes,
    in_flight: Arc<InFlight>,
    receiving: Arc<Receiving>,
    default_deadline: Duration,
    peer: Arc<str>,
    /// Held by each call of the connection whose answer has not begun, too.
    waiting: Arc<()>,
}

impl Around {
    /// Puts the routes in the middle. Requests whose callers set no deadline must have come within the default one.
    pub(super) fn new(routes: Routes, in_flight: Arc<InFlight>, default_deadline: Duration) -> Self {
        let (receiving, waiting) = (Arc::default(), Arc::default());
        Self { routes, in_flight, receiving, default_deadline, peer: "".into(), waiting }
    }

    /// For the calls of one connection.
    pub(super) fn of_peer(&self, address: Arc<str>) -> Self {
        Self { peer: address, waiting: Arc::default(), ..self.clone() }
    }

    /// Tells whether there are calls of the connection whose answer has not begun; that of a stream begins when it is open.
    pub(super) fn waits(&self) -> impl Fn() -> bool + use<> {
        let waiting = Arc::downgrade(&self.waiting);
        move || waiting.strong_count() > 1
    }
}

impl hyper::service::Service<Request<Incoming>> for Around {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, mut request: Request<Incoming>) -> Answering {
        let request_id = RequestId::of(request.headers());
        let entered = is_short(request.uri().path()).then(|| self.in_flight.enter()).transpose();
        let entered = match entered {
            Ok(entered) => entered,
            Err(error) => {
                let refusal = to_status(&error, &request_id).into_http();
                return Answering(State::Refused(Some(refusal)));
            }
        };
        let deadline = request.headers().get(TIMEOUT).and_then(timeout).map(Deadline::within);
        let context = CallContext { request_id: request_id.clone(), peer: Arc::clone(&self.peer), deadline };
        request.extensions_mut().insert(context);
        let reads_commands = reads_commands(request.uri().path());
        let answer = self.routes.answer(request.map(|body| match reads_commands {
            true => Received::in_commands(body, &self.receiving, request_id.clone()),
            false => {
                let deadline = deadline.unwrap_or_else(|| Deadline::within(self.default_deadline));
                let body = Received::whole(body, &self.receiving, request_id.clone(), deadline);
                match entered {
                    Some(_) => body.parking(self.in_flight.parked()),
                    None => body,
                }
            }
        }));
        // Short calls run in their connection's task; what may take long must not hold up the connection's other calls.
        let answer = match entered {
            Some(_) => unwound(answer, request_id.clone()),
            None => apart(answer, request_id.clone()),
        };
        let waiting = Arc::clone(&self.waiting);
        Answering(State::Asked { answer, request_id, _entered: entered, _waiting: waiting })
    }
}

type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// The same answer, made in a task of its own, which ends with its caller's interest.
fn apart(answer: Answer, request_id: RequestId) -> Answer {
    let task = AbortOnDropHandle::new(tokio::spawn(answer));
    Box::pin(async move { task.await.unwrap_or_else(|_| panicked(&request_id)) })
}

/// The same answer, also if it panics.
fn unwound(answer: Answer, request_id: RequestId) -> Answer {
    let answer = AssertUnwindSafe(answer).catch_unwind();
    Box::pin(async move { answer.await.unwrap_or_else(|_| panicked(&request_id)) })
}

fn panicked(request_id: &RequestId) -> Result<Response<Body>, Infallible> {
    let error = Error::internal("a call ended without an answer");
    Ok(to_status(&error, request_id).into_http())
}

/// The answer to a call, as soon as it is there.
pub(super) struct Answering(State);

enum State {
    Asked { answer: Answer, request_id: RequestId, _entered: Option<Entered>, _waiting: Arc<()> },
    Refused(Option<Response<Body>>),
}

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Asked { answer, request_id, .. } => {
                answer.as_mut().poll(context).map_ok(|response| match in_our_words(response.headers()) {
                    Some(error) => to_status(&error, request_id).into_http(),
                    None => response,
                })
            }
            State::Refused(refusal) => {
                refusal.take().map_or(Poll::Pending, |refusal| Poll::Ready(Ok(refusal)))
            }
        }
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
    let status = Status::from_header_map(headers)?;
    if headers.contains_key(REASON) {
        return None;
    }
    of_transport(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_panics_is_answered_with_internal() {
        for around in [unwound, apart] {
            let request_id = RequestId::of(&HeaderMap::new());
            let answer = around(Box::pin(async { panic!("a fault of the test's own") }), request_id);
            let answer = answer.await.expect("an answer");
            let status = Status::from_header_map(answer.headers()).expect("a status");
            assert_eq!(status.code(), tonic::Code::Internal);
            assert_eq!(answer.headers()[REASON], "INTERNAL");
        }
    }

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

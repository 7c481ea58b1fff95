//! Unary calls: options, deadlines, repeats.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use tokio::time::{Instant, sleep, timeout_at};

use crate::time::{Pauses, in_time};
use crate::{Client, Error};

/// A request of the contract that has one reply. Implemented for each by the build.
pub trait Rpc: prost::Message + Clone + Default + 'static {
    /// The reply of the contract.
    type Reply: prost::Message + Default + 'static;
    /// The path of the call on the wire.
    const PATH: &'static str;
    /// Whether the call may be made again although its outcome is unknown.
    fn repeatable(&self) -> bool;
    /// Whether a failure can leave a part of the items done.
    fn settles_several(&self) -> bool;
    /// How long the server may take to answer, beyond what it needs.
    fn wait(&self) -> Option<Duration>;
}

/// The largest message of the wire, in either direction.
pub(crate) const MAX_WIRE_BYTES: usize = 8 * 1024 * 1024;

/// How often a failed call is made again.
const REPEATS: usize = 3;

/// A call that is made when it is awaited. Its methods are its options, with the words of the contract.
#[must_use = "a call is made when it is awaited"]
pub struct Call<Q: Rpc, A = <Q as Rpc>::Reply> {
    pub(crate) client: Client,
    pub(crate) request: Result<Q, Error>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) make: Make<Q>,
    pub(crate) answer: fn(&Client, Q, Q::Reply) -> A,
}

/// How a call is made: by [`Client::unary`], unless there is a better way.
pub(crate) type Make<Q> =
    fn(Client, Q, Option<Duration>) -> BoxFuture<'static, Result<<Q as Rpc>::Reply, Error>>;

impl<Q: Rpc> Call<Q> {
    /// A call whose answer is the reply of the contract.
    pub(crate) fn plain(client: &Client, request: Q) -> Self {
        Self::new(client, Ok(request), |_, _, reply| reply)
    }
}

impl<Q: Rpc, A> Call<Q, A> {
    pub(crate) fn new(
        client: &Client,
        request: Result<Q, Error>,
        answer: fn(&Client, Q, Q::Reply) -> A,
    ) -> Self {
        let make: Make<Q> =
            |client, request, timeout| async move { client.unary(&request, timeout).await }.boxed();
        Self { client: client.clone(), request, timeout: None, make, answer }
    }

    /// How long the call and its repeats may take, in place of the client's default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The request as it will be sent, for what has no method here.
    pub fn request_mut(&mut self) -> Option<&mut Q> {
        self.request.as_mut().ok()
    }

    pub(crate) fn set(mut self, change: impl FnOnce(&mut Q)) -> Self {
        if let Ok(request) = &mut self.request {
            change(request);
        }
        self
    }
}

impl<Q: Rpc, A: Send + 'static> IntoFuture for Call<Q, A> {
    type Output = Result<A, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        async move {
            let request = self.request?;
            let reply = (self.make)(self.client.clone(), request.clone(), self.timeout).await?;
            Ok((self.answer)(&self.client, request, reply))
        }
        .boxed()
    }
}

impl<Q: Rpc, A> fmt::Debug for Call<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("path", &Q::PATH).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a call, and makes it again as long as that is safe and there is time.
    pub(crate) async fn unary<Q: Rpc>(
        &self,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<Q::Reply, Error> {
        let timeout =
            timeout.unwrap_or_else(|| self.timeout().saturating_add(request.wait().unwrap_or_default()));
        let deadline = in_time(timeout);
        let mut pauses = Pauses::up_to(Duration::from_secs(2));
        let mut repeats = 0;
        let mut outcome_unknown = false;
        loop {
            let error = match self.attempt(request, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            outcome_unknown |= error.outcome_unknown();
            let safe = error.repeat_is_safe() || error.is_unavailable() && request.repeatable();
            let pause = pauses.next(error.retry_delay());
            if !safe || repeats == REPEATS || Instant::now() + pause >= deadline {
                return Err(error.with_outcome_unknown(outcome_unknown));
            }
            repeats += 1;
            tracing::debug!(path = Q::PATH, repeats, ?pause, %error, "a call is repeated");
            sleep(pause).await;
        }
    }

    async fn attempt<Q: Rpc>(&self, request: &Q, deadline: Instant) -> Result<Q::Reply, Error> {
        self.inner.life.check_not_closed()?;
        let mut grpc = tonic::client::Grpc::new(self.service()).max_decoding_message_size(MAX_WIRE_BYTES);
        let mut message = tonic::Request::new(request.clone());
        message.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let codec = tonic_prost::ProstCodec::<Q, Q::Reply>::default();
        let answer = timeout_at(deadline, async {
            grpc.ready().await?;
            grpc.unary(message, PathAndQuery::from_static(Q::PATH), codec).await
        });
        match answer.await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => {
                let error = Error::from(status);
                let open = error.outcome_unknown() || error.may_be_of_one() && request.settles_several();
                Err(error.with_outcome_unknown(open))
            }
            Err(_) => Err(Error::deadline_exceeded()),
        }
    }
}

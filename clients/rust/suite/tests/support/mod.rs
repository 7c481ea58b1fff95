//! What the tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pgmq_grpc_client::{Client, Queue, Service};
use tonic::Status;
use tower::ServiceExt as _;

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn client() -> Client {
    Client::connect(None).expect("the target is usable")
}

/// A new queue that no other test has.
pub(crate) async fn new_queue(client: &Client) -> Queue {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock that is set");
    let queue = client.queue(format!("rust_{:x}_{number}", since.as_nanos() as u64));
    queue.create().await.expect("the queue is created");
    queue
}

/// Waits until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let until = Instant::now() + Duration::from_secs(30);
    while !check().await {
        assert!(Instant::now() < until, "{what} has not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A layer that counts calls to one path, and loses the answers to the first ones, as a broken connection would.
#[derive(Clone)]
pub(crate) struct Loses {
    pub(crate) path: &'static str,
    pub(crate) answers: usize,
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Loses {
    pub(crate) fn first(answers: usize, path: &'static str) -> Self {
        Self { path, answers, calls: Arc::default() }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl tower::Layer<Service> for Loses {
    type Service = Losing;

    fn layer(&self, service: Service) -> Losing {
        Losing { loses: self.clone(), service }
    }
}

#[derive(Clone)]
pub(crate) struct Losing {
    loses: Loses,
    service: Service,
}

impl tower::Service<http::Request<tonic::body::Body>> for Losing {
    type Response = http::Response<tonic::body::Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let Self { loses, service } = self.clone();
        async move {
            let loses = request.uri().path().ends_with(loses.path)
                && loses.calls.fetch_add(1, Ordering::Relaxed) < loses.answers;
            let answer = service.oneshot(request).await?;
            if loses { Err(Status::unavailable("the answer was lost")) } else { Ok(answer) }
        }
        .boxed()
    }
}

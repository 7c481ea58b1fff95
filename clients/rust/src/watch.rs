//! Watching queues, without reading from them.

use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::life::closed;
use crate::pb::{QueueEvent, WatchRequest};
use crate::time::{Pauses, duration, span};
use crate::{Client, Error};

/// A watch to be made. Await it: the [`Watcher`] is there when the server has confirmed it.
#[derive(Debug)]
#[must_use = "nothing is watched before it is awaited"]
pub struct Watch {
    client: Client,
    request: WatchRequest,
}

impl Watch {
    pub(crate) fn new(client: Client, queues: Vec<String>) -> Self {
        Self { client, request: WatchRequest { queues, heartbeat_interval: None } }
    }

    /// The longest silence of the stream: 1 second to 10 minutes. 25 seconds without this.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.request.heartbeat_interval = Some(span(interval));
        self
    }
}

impl IntoFuture for Watch {
    type Output = Result<Watcher, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { client, request } = self;
        async move {
            let (confirm, confirmed) = oneshot::channel();
            let (events, received) = mpsc::channel(64);
            let limit = client.timeout();
            client.inner.life.check_open()?;
            tokio::spawn(watch(client, request, events, confirm));
            match timeout(limit, confirmed).await {
                Ok(Ok(answer)) => answer.map(|()| Watcher { events: received }),
                Ok(Err(_)) => Err(closed()),
                Err(_) => Err(Error::deadline_exceeded()),
            }
        }
        .boxed()
    }
}

/// A stream of what happens to queues.
///
/// An event is a hint to look, not a count. The watcher opens its connection again when that breaks; what happened meanwhile
/// is not told.
#[derive(Debug)]
pub struct Watcher {
    events: mpsc::Receiver<Result<QueueEvent, Error>>,
}

impl Watcher {
    /// The next event; `None` after an error, or when the client is closed.
    pub async fn next(&mut self) -> Option<Result<QueueEvent, Error>> {
        self.events.recv().await
    }
}

impl Stream for Watcher {
    type Item = Result<QueueEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

type Confirm = oneshot::Sender<Result<(), Error>>;

/// Watches until the watcher is gone, or an error that no repetition cures.
async fn watch(
    client: Client,
    request: WatchRequest,
    events: mpsc::Sender<Result<QueueEvent, Error>>,
    confirm: Confirm,
) {
    let mut confirm = Some(confirm);
    let mut pauses = Pauses::up_to(Duration::from_secs(5));
    let follow = async {
        loop {
            let asked = match stream(&client, &request, &events, &mut confirm, &mut pauses).await {
                Ok(asked) => asked,
                Err(error) if error.is_final() => return error,
                Err(error) => error.retry_delay(),
            };
            sleep(pauses.next(asked)).await;
        }
    };
    let gone = tokio::select! {
        error = follow => error,
        () = events.closed() => return,
        () = client.inner.life.ends() => return,
    };
    // Whoever waits for the confirmation hears of it there, and else where the events go.
    match confirm.take() {
        Some(confirm) => drop(confirm.send(Err(gone))),
        None => drop(events.send(Err(gone)).await),
    }
}

async fn stream(
    client: &Client,
    request: &WatchRequest,
    events: &mpsc::Sender<Result<QueueEvent, Error>>,
    confirm: &mut Option<Confirm>,
    pauses: &mut Pauses,
) -> Result<Option<Duration>, Error> {
    let mut silence = Duration::from_secs(30);
    let silent = |_| Error::broken("the stream was silent for too long");
    let mut stub = client.raw().queues;
    let mut responses = timeout(silence, stub.watch(request.clone())).await.map_err(silent)??.into_inner();
    let mut asked = None;
    loop {
        let Some(response) = timeout(silence, responses.message()).await.map_err(silent)?? else {
            return Ok(asked);
        };
        if let Some(started) = response.started {
            pauses.reset();
            silence = duration(started.heartbeat_interval).map_or(silence, |interval| 2 * interval);
            if let Some(confirm) = confirm.take() {
                // Whoever waits may have gone, which `events` tells.
                let _ = confirm.send(Ok(()));
            }
        }
        asked = response.closing.map(|closing| duration(closing.retry_delay)).unwrap_or(asked);
        for event in response.events {
            if events.send(Ok(event)).await.is_err() {
                return Ok(None);
            }
        }
    }
}

//! Tells the other replicas what happened here, and takes over what happened there.
//!
//! Nothing is told inside a send: a notification's commit holds a lock of the whole cluster, so one task tells for
//! all, and rarely. What is lost costs others one look at the queue, which they take by themselves from time to time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rand::Rng;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Broker;
use crate::domain::error::chain;
use crate::domain::{QueueName, Result};
use crate::engine::Happening;
use crate::engine::announcement::{self, Announcement, News, Told};
use crate::pg::{Announcements, Line};

/// The least time between two announcements of this replica.
const INTERVAL: Duration = Duration::from_millis(50);

/// The time in which a replica hears itself, unless something in front of the database swallows announcements.
const ECHO: Duration = Duration::from_secs(10);

/// The pauses before another try to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Tells and hears for one replica.
pub struct Announcer {
    broker: Arc<Broker>,
    announcements: Announcements,
    /// Announcements may have been lost, of this replica or to it.
    lost: bool,
    /// It was said already that nothing arrives.
    deaf: bool,
}

impl Announcer {
    /// Prepares to tell and to hear.
    pub fn new(broker: &Arc<Broker>, announcements: Announcements) -> Self {
        Self { broker: Arc::clone(broker), announcements, lost: false, deaf: false }
    }

    /// Tells and hears until the token is cancelled, over one connection after the other.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let served = tokio::select! {
                () = stop.cancelled() => return,
                connected = self.announcements.connect() => match connected {
                    Ok(line) => {
                        pause = FIRST_PAUSE;
                        let (pulse, policies) = (line.pulse(), self.broker.database.policies().clone());
                        tokio::select! {
                            served = self.serve(line, &stop) => served,
                            failed = pulse.feel(&policies) => failed.map(|never| match never {}),
                        }
                    }
                    Err(error) => Err(error),
                }
            };
            match served {
                Ok(()) => return,
                Err(error) => tracing::debug!(error = chain(&error), "announcements are interrupted"),
            }
            self.lost = true;
            self.broker.database.policies().set_hearing(false);
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause.mul_f64(jitter)) => pause = (pause * 2).min(LAST_PAUSE),
            }
        }
    }

    /// Tells and hears over one connection, until it is lost or the server ends.
    async fn serve(&mut self, mut line: Line, stop: &CancellationToken) -> Result<()> {
        let events = self.broker.events.clone();
        tracing::debug!("listening for announcements");
        // What was announced before this connection listened was not heard.
        events.heard_everything();
        self.broker.database.policies().look_again();
        line.announce(&[announcement::hello(&self.broker.replica)]).await?;
        if std::mem::take(&mut self.lost) {
            self.tell(&line, vec![announcement::everything(&self.broker.replica)]).await?;
        }
        let (mut rested, echo) = (Instant::now(), Instant::now() + ECHO);
        let mut heard_itself = self.deaf;
        loop {
            tokio::select! {
                payload = line.hear() => match payload {
                    Some(payload) => heard_itself |= self.hear(&payload),
                    None => return Err(crate::domain::Error::internal("the connection for announcements was lost")),
                },
                happenings = async { sleep_until(rested).await; events.to_announce().await } => {
                    rested = Instant::now() + INTERVAL;
                    self.tell(&line, announcement::payloads(&self.broker.replica, happenings)).await?;
                }
                () = sleep_until(echo), if !heard_itself => {
                    (heard_itself, self.deaf) = (true, true);
                    tracing::warn!(
                        "no announcements arrive, as behind a pooler that shares connections; messages of other servers \
                         are found by looking for them"
                    );
                }
                () = stop.cancelled() => {
                    if let Some(happenings) = events.to_announce().now_or_never() {
                        self.tell(&line, announcement::payloads(&self.broker.replica, happenings)).await?;
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn tell(&mut self, line: &Line, payloads: Vec<String>) -> Result<()> {
        tracing::trace!(payloads = payloads.len(), "announced");
        line.announce(&payloads).await.inspect_err(|_| self.lost = true)
    }

    /// Takes over what was told; whether this replica heard itself.
    fn hear(&self, payload: &str) -> bool {
        let Some(Announcement { replica, news }) = Announcement::parse(payload) else {
            return false;
        };
        if replica == self.broker.replica {
            self.broker.database.policies().set_hearing(true);
            return true;
        }
        match news {
            News::Hello => {}
            News::Everything => {
                tracing::debug!(replica, "announcement heard of everything");
                self.broker.events.heard_everything();
                self.broker.database.policies().look_again();
            }
            News::Policies => self.broker.database.policies().look_again(),
            News::Queues(queues) => {
                for (queue, told) in queues {
                    tracing::debug!(replica, queue = queue.as_str(), ?told, "announcement heard");
                    self.take_over(&queue, told);
                }
            }
        }
        false
    }

    fn take_over(&self, queue: &QueueName, told: Told) {
        match told {
            Told::Happened(happening) => {
                if happening == Happening::Remade {
                    self.broker.database.forget(queue);
                }
                self.broker.events.heard(queue, happening);
            }
            Told::Due(wait) => self.broker.events.heard_due(queue, Instant::now() + wait),
        }
    }
}

//! grpc.health.v1: the truth about the database, per service, and how to ask for it.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Reported;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::config::Listen;
use crate::pg::DatabaseState;

/// The services with a health of their own; the empty name stands for the whole server.
const SERVICES: [&str; 5] = [
    "",
    "pgmq.v1.QueueService",
    "pgmq.v1.TopicService",
    "pgmq.v1.AdminService",
    "pgmq.v1.TransactionService",
];

/// Reports what the database monitor finds; never serving while draining.
pub(super) struct Health {
    reporter: HealthReporter,
    service: HealthServer<HealthService>,
    state: watch::Receiver<DatabaseState>,
    drain: CancellationToken,
}

impl Health {
    /// Begins as not serving, which tonic-health does not do by itself.
    pub(super) async fn new(state: watch::Receiver<DatabaseState>, drain: CancellationToken) -> Self {
        let reporter = HealthReporter::new();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let health = Self { reporter, service, state, drain };
        health.report(ServingStatus::NotServing).await;
        health
    }

    /// The gRPC service.
    pub(super) fn service(&self) -> HealthServer<HealthService> {
        self.service.clone()
    }

    /// Reports every change until the token is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let ready = *self.state.borrow_and_update() == DatabaseState::Ready;
            self.report(if ready { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() { return },
                () = self.drain.cancelled() => break,
                () = stop.cancelled() => break,
            }
        }
        self.report(ServingStatus::NotServing).await;
    }

    async fn report(&self, status: ServingStatus) {
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// Asks a running server for the health of a service.
///
/// # Errors
/// A sentence that says what was wrong: no answer, or not serving.
pub async fn check(target: &Listen, service: &str, patience: Duration) -> Result<(), String> {
    let uri = match target {
        Listen::Tcp(address) => format!("http://{address}"),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    };
    let asked = async {
        let endpoint = Endpoint::from_shared(uri).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| crate::domain::error::chain(&error))?;
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel).check(request).await;
        answer.map(|answer| answer.into_inner().status()).map_err(|status| status.message().to_owned())
    };
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(Reported::Serving)) => Ok(()),
        Ok(Ok(other)) => Err(format!("{target} answers {}", other.as_str_name())),
        Ok(Err(cause)) => Err(format!("{target} does not answer: {cause}")),
        Err(_) => Err(format!("{target} does not answer within {patience:?}")),
    }
}

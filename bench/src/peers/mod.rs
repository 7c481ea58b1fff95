//! The peers: how each is found, started, and run.

mod broker;
pub mod nats;
pub mod pgbench;
pub mod python;
pub mod rabbitmq;

use std::path::Path;

/// The brokers that run beside the server, or why they do not.
pub struct Brokers {
    /// RabbitMQ's address.
    pub rabbitmq: Result<rabbitmq::Rabbitmq, String>,
    /// NATS, which syncs every two minutes.
    pub nats: Result<nats::Nats, String>,
    /// NATS, which syncs before each answer.
    pub nats_synced: Result<nats::Nats, String>,
}

impl Brokers {
    /// Starts what is installed.
    pub async fn start(output: &Path) -> Brokers {
        let directory = output.join("rabbitmq");
        let (rabbitmq, nats, nats_synced) = tokio::join!(
            rabbitmq::Rabbitmq::start(&directory),
            nats::Nats::start(output, "nats", false),
            nats::Nats::start(output, "nats-synced", true),
        );
        let brokers = Brokers {
            rabbitmq: rabbitmq.map_err(|error| format!("{error:#}")),
            nats: nats.map_err(|error| format!("{error:#}")),
            nats_synced: nats_synced.map_err(|error| format!("{error:#}")),
        };
        let missing = [
            brokers.rabbitmq.as_ref().err(),
            brokers.nats.as_ref().err(),
            brokers.nats_synced.as_ref().err(),
        ];
        for why in missing.into_iter().flatten() {
            eprintln!("a peer is missing: {why}");
        }
        brokers
    }

    /// Stops what was started.
    pub async fn stop(self) {
        if let Ok(rabbitmq) = self.rabbitmq {
            rabbitmq.stop().await;
        }
        for nats in [self.nats, self.nats_synced].into_iter().flatten() {
            nats.stop().await;
        }
    }
}

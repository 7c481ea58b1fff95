//! The standard health service, as a probe asks it.

use std::process::Output;

use tonic::Status;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Client, Server, eventually};

/// What one service reports.
pub(crate) async fn check(channel: &Channel, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel.clone()).check(request).await?;
    Ok(answer.into_inner().status())
}

/// Waits until a server says that it serves.
pub(crate) async fn serving(client: &Client) {
    reported(client, ServingStatus::Serving).await;
}

/// Waits until a server says that it does not serve.
pub(crate) async fn not_serving(client: &Client) {
    reported(client, ServingStatus::NotServing).await;
}

async fn reported(client: &Client, wanted: ServingStatus) {
    eventually(wanted.as_str_name(), async || {
        let status = check(&client.channel, "").await.expect("a health");
        (status == wanted).then_some(())
    })
    .await;
}

/// Runs `pgmq-grpc health` with flags.
pub(crate) async fn probe(flags: &[&str]) -> Output {
    let mut command = tokio::process::Command::from(Server::command());
    command.arg("health").args(flags).output().await.expect("a probe")
}

//! What the server says of itself, and names checked without using them.

use std::sync::Arc;

use super::{Broker, Operation, ServerState};
use crate::domain::{Deadline, Result};
use crate::pg::Installation;

/// Says that a name is good: its request could not be converted otherwise.
#[derive(Debug)]
pub struct ValidateName;

impl Operation for ValidateName {
    const NAME: &'static str = "validate_name";
    type Output = ();

    async fn run(self, _: &Arc<Broker>, _: Deadline) -> Result<()> {
        Ok(())
    }
}

/// Versions, and what this server can do with the pgmq it found.
#[derive(Debug)]
pub struct GetServerInfo;

/// What the server says of itself.
#[derive(Debug)]
pub struct ServerInfo {
    /// This server's name among those on the same database.
    pub replica: String,
    /// What is installed in the database.
    pub installation: Arc<Installation>,
    /// What works here, in alphabetical order.
    pub capabilities: Vec<String>,
    /// What it has to do now.
    pub state: ServerState,
}

impl Operation for GetServerInfo {
    const NAME: &'static str = "get_server_info";
    type Output = ServerInfo;

    async fn run(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<ServerInfo> {
        let installation = match broker.database.known_installation() {
            Some(known) => known,
            None => broker.database.connect(Self::NAME, deadline).await?.installation().await?,
        };
        let mut capabilities = installation.capabilities();
        // The schema is looked at once pgmq is there.
        if installation.installed_by.is_some() && broker.database.has_own_schema() {
            capabilities.extend(["clients", "deduplication", "policies"].map(str::to_owned));
            capabilities.sort_unstable();
        }
        let state = broker.state();
        Ok(ServerInfo { replica: broker.replica.clone(), installation, capabilities, state })
    }
}

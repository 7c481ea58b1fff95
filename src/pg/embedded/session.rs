//! Opens a session to see whether Postgres answers, and creates the database on the first one.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

/// The database that the queues are in.
pub(super) const DATABASE: &str = "pgmq";

/// A stopped process accepts connections, in the kernel, and never answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Connects, and returns the version of the server; or why not, where `None` is no answer at all.
pub(super) async fn open(config: &Config) -> Result<String, Option<Error>> {
    match timeout(ANSWER_LIMIT, version(config)).await {
        Ok(answer) => answer.map_err(Some),
        Err(_) => Err(None),
    }
}

async fn version(config: &Config) -> Result<String, Error> {
    let client = match connect(config).await {
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_DATABASE) => {
            let mut maintenance = config.clone();
            let client = connect(maintenance.dbname("postgres")).await?;
            client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await?;
            connect(config).await?
        }
        result => result?,
    };
    let messages = client.simple_query("SHOW server_version").await?;
    let version = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    // Packagers add words of their own: `15.18 (Debian 15.18-0+deb12u1)`.
    Ok(version.and_then(|version| version.split_whitespace().next()).unwrap_or_default().to_owned())
}

async fn connect(config: &Config) -> Result<Client, Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client. An error of the connection reaches the client's caller as well.
    tokio::spawn(connection);
    Ok(client)
}

//! What a server says when it starts.

use std::io::{IsTerminal, Write};

use super::listener::Listener;
use crate::config::{Config, DatabaseUrl, LogFormat};
use crate::pg::Installation;
use crate::pg::embedded::Embedded;

/// Says where the server listens, which database it uses, which pgmq that has, and how to try it. People get lines to
/// read, programs one log line.
pub(super) fn print(
    config: &Config,
    listeners: &[Listener],
    url: &DatabaseUrl,
    embedded: Option<&Embedded>,
    installation: Option<&Installation>,
) {
    let addresses: Vec<String> = listeners.iter().map(Listener::address).collect();
    let database = match embedded {
        Some(embedded) => {
            format!("embedded Postgres {} in {}", embedded.version(), embedded.data_dir().display())
        }
        None => url.to_string(),
    };
    let pgmq = match installation.map(|found| (&found.pgmq_version, found.installed_by)) {
        None => "not known yet: the database does not answer".to_owned(),
        Some((_, None)) => "not installed".to_owned(),
        Some((version, Some(by))) => {
            format!("{} ({})", version.as_deref().unwrap_or("unknown version"), by.word())
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = addresses.join(","),
        database,
        pgmq,
        "started"
    );
    if !for_people(config) {
        return;
    }
    let target = addresses.first().map_or("127.0.0.1:50051", String::as_str);
    let lines = format!(
        "\n  pgmq-grpc {}\n\n  listening   {}\n  database    {database}\n  pgmq        {pgmq}\n\n  try it:\n    \
         grpcurl -plaintext -d '{{\"queue\":\"hello\"}}' {target} pgmq.v1.QueueService/CreateQueue\n\n",
        env!("CARGO_PKG_VERSION"),
        addresses.join(", "),
    );
    // Nobody reads a closed standard output.
    let _ = std::io::stdout().write_all(lines.as_bytes());
}

fn for_people(config: &Config) -> bool {
    match config.log.format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    }
}

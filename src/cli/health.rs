//! `pgmq-grpc health`: what to ask, and whom.

use std::time::Duration;

use clap::{Arg, ArgMatches, Command};

use crate::config::{Listen, Problems, Sources, configured_listen, value};

const LONGEST: Duration = Duration::from_secs(600);

/// A question for the health of a running server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The server. Default: the first address that a server with the same environment would serve on.
    pub target: Listen,
    /// The service, as the gRPC health protocol names it; empty for the server as a whole. Default:
    /// `pgmq.v1.QueueService`.
    pub service: String,
    /// How long to wait for the answer, 1 ms to 10 min. Default: 3 s.
    pub timeout: Duration,
}

impl HealthCheck {
    pub(super) fn from_matches(matches: &ArgMatches, sources: Sources<'_>) -> Result<HealthCheck, Problems> {
        let mut problems = Problems::default();
        let service = text(matches, "service").to_owned();
        let timeout = text(matches, "timeout");
        let timeout = match value::duration(timeout, Duration::from_millis(1)..=LONGEST) {
            Ok(timeout) => timeout,
            Err(complaint) => {
                problems.add(format!("--timeout: {timeout:?} {complaint}"));
                Duration::ZERO
            }
        };
        match target(matches, sources) {
            Ok(target) => problems.unless_any(HealthCheck { target, service, timeout }),
            Err(more) => {
                problems.append(more);
                Err(problems)
            }
        }
    }
}

fn target(matches: &ArgMatches, sources: Sources<'_>) -> Result<Listen, Problems> {
    let target = match matches.get_one::<String>("target") {
        Some(text) => {
            text.parse().map_err(|complaint| Problems::one(format!("--target: {text:?} {complaint}")))?
        }
        None => configured_listen(sources)?.swap_remove(0),
    };
    if matches!(&target, Listen::Tcp(address) if address.port() == 0) {
        return Err(Problems::one(format!(
            "--target: {target} has no port to call; give --target with the port"
        )));
    }
    Ok(target.reachable())
}

fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

pub(super) fn command() -> Command {
    Command::new("health")
        .about("Ask a running server for its health: exit with 0 if it serves, else with 1")
        .arg(Arg::new("target").long("target").value_name("ADDRESS").help(
            "Server to ask: IP:PORT, localhost:PORT or unix:/PATH.\n\
                 [default: the first of PGMQ_GRPC_LISTEN, or else 127.0.0.1:50051]",
        ))
        .arg(
            Arg::new("service")
                .long("service")
                .value_name("NAME")
                .default_value("pgmq.v1.QueueService")
                .help("Service to ask for; an empty name means the server as a whole."),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .default_value("3s")
                .allow_negative_numbers(true)
                .help("Longest time to wait for the answer."),
        )
}

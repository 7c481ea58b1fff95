//! The `pgmq-grpc` program.

use std::io::Write;
use std::process::ExitCode;

use pgmq_grpc::cli::{self, Command};
use pgmq_grpc::config::Config;
use pgmq_grpc::domain::error::chain;
use pgmq_grpc::{server, telemetry};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = match cli::parse_process() {
        Ok(command) => command,
        Err(stop) => return stop.report(),
    };
    // rustls has no default provider as soon as two of its users bring one each.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    match command {
        Command::Serve(config) => serve(&runtime, *config),
        Command::Health(check) => {
            let healthy = server::check_health(&check.target, &check.service, check.timeout);
            runtime.block_on(healthy).map_or_else(|why| fail(&why), |()| ExitCode::SUCCESS)
        }
    }
}

fn serve(runtime: &Runtime, config: Config) -> ExitCode {
    if let Err(error) = telemetry::init(&config.log) {
        return fail(&format!("no log: {error}"));
    }
    match runtime.block_on(server::serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn fail(why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "pgmq-grpc: {why}");
    ExitCode::FAILURE
}

//! Measures pgmq-grpc against its peers, on one machine, in interleaved rounds, and reports ratios.
//!
//! `run` is the laboratory: it starts a private Postgres through the server under test, brokers of the peers, and for
//! every trial a load generator, which is this program again, as `load`. CONTRIBUTING.md says how to use it.

mod lab;
mod load;
mod peers;
mod proto;
mod report;
mod rounds;
mod scenarios;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures pgmq-grpc against its peers.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the scenarios and report.
    Run(RunArguments),
    /// Be a load generator: used by `run` only.
    Load {
        /// The order, as JSON.
        order: String,
    },
}

/// What to run, on what, and where the results go.
#[derive(clap::Args)]
pub struct RunArguments {
    /// The pgmq-grpc program to measure.
    #[arg(long)]
    server: PathBuf,
    /// Where results, data and logs go.
    #[arg(long)]
    output: PathBuf,
    /// Shorter trials and fewer scenarios, in at most 4 minutes instead of 20.
    #[arg(long)]
    quick: bool,
    /// Only the groups of scenarios whose names contain one of these words, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many rounds, at least three for results worth telling.
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each trial counts, in milliseconds.
    #[arg(long)]
    measure_ms: Option<u64>,
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime")?;
    let result = match arguments.command {
        Command::Run(arguments) => runtime.block_on(scenarios::run(arguments)),
        Command::Load { order } => runtime.block_on(load::run(serde_json::from_str(&order)?)),
    };
    // Callers of a load generator go on for ever.
    runtime.shutdown_background();
    result
}

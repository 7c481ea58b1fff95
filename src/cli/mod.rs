//! The command line: what the program is asked to do.

mod arguments;
mod health;
mod options;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::config::{Config, Problems, Sources};

pub use health::HealthCheck;
pub use options::{OptionRow, option_table};

/// What the program is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `pgmq-grpc [serve]`: serve until told to end.
    Serve(Box<Config>),
    /// `pgmq-grpc health`: ask a running server for its health.
    Health(HealthCheck),
}

/// Why the program ends without doing anything.
#[derive(Debug)]
pub enum Stop {
    /// `--help`, `--version`, or a command line with flags that do not exist.
    Usage(clap::Error),
    /// Values that do not fit.
    Problems(Problems),
}

/// Reads this process's command line, environment and configuration file.
///
/// # Errors
///
/// `Stop`, which reports itself.
pub fn parse_process() -> Result<Command, Stop> {
    parse(std::env::args_os(), Sources::process())
}

/// Reads a command line, whose first word is the program's name.
///
/// # Errors
///
/// `Stop`, which reports itself.
pub fn parse(args: impl IntoIterator<Item = OsString>, sources: Sources<'_>) -> Result<Command, Stop> {
    let args: Vec<OsString> = args.into_iter().collect();
    let matches =
        arguments::program().try_get_matches_from(&args).map_err(|error| without_secrets(error, &args))?;
    match matches.subcommand() {
        Some(("health", matches)) => HealthCheck::from_matches(matches, sources).map(Command::Health),
        Some((_serve, matches)) => Config::load(&arguments::flags(matches), sources).map(serve),
        None => Config::load(&arguments::flags(&matches), sources).map(serve),
    }
    .map_err(Stop::Problems)
}

fn serve(config: Config) -> Command {
    Command::Serve(Box::new(config))
}

/// clap quotes a word that it does not understand, which may be a database URL in the wrong place.
fn without_secrets(error: clap::Error, args: &[OsString]) -> Stop {
    let text = error.to_string();
    let is_secret = |arg: &OsString| {
        let arg = arg.to_string_lossy();
        (arg.contains("://") || arg.contains("password")) && text.contains(arg.as_ref())
    };
    if args.iter().any(is_secret) {
        let message = "a database URL stands where none can; give it as --database-url URL or by the variable \
                       PGMQ_GRPC_DATABASE_URL\n";
        return Stop::Usage(clap::Error::raw(error.kind(), message));
    }
    Stop::Usage(error)
}

impl Stop {
    /// Prints help and version to standard output, everything else to standard error, and returns the exit code:
    /// 0 for help and version, else 2.
    pub fn report(&self) -> ExitCode {
        // Nobody is left to tell if printing fails.
        match self {
            Stop::Usage(error) => {
                let _ = error.print();
                match error.kind() {
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                    _ => ExitCode::from(2),
                }
            }
            Stop::Problems(problems) => {
                let _ = writeln!(io::stderr(), "{problems}");
                ExitCode::from(2)
            }
        }
    }
}

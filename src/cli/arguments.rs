//! The command line as clap knows it, made from the table of options.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{Flags, SETTINGS, Setting, Shape};

const EXAMPLES: &str = "\
Examples:
  pgmq-grpc
          Serve on 127.0.0.1:50051, with an embedded Postgres whose data is kept.
  pgmq-grpc --ephemeral --listen 127.0.0.1:0
          Serve on any free port, and forget everything at the end.
  DATABASE_URL='postgres://app@db.example/app' pgmq-grpc --listen 0.0.0.0:50051
          Serve an existing Postgres to the network.
  pgmq-grpc health
          Exit with 0 if the server on this machine serves, else with 1.";

/// The whole command line.
pub(super) fn program() -> Command {
    let serve = Command::new("serve").about("Serve the queues (what happens without a command too)");
    with_settings(Command::new("pgmq-grpc"))
        .version(env!("CARGO_PKG_VERSION"))
        .about("The PGMQ message queue on Postgres, served over gRPC")
        .override_usage("pgmq-grpc [serve] [OPTIONS]\n       pgmq-grpc health [OPTIONS]")
        .after_help(EXAMPLES)
        .subcommand(with_settings(serve).after_help(EXAMPLES))
        .subcommand(super::health::command().next_line_help(true).max_term_width(100))
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
}

/// The texts of all flags that were given.
pub(super) fn flags(matches: &ArgMatches) -> Flags {
    let mut flags = Flags::default();
    for setting in SETTINGS {
        if let Some(texts) = matches.get_many::<String>(setting.flag) {
            flags.add(setting.flag, texts.cloned().collect());
        }
    }
    flags
}

fn with_settings(command: Command) -> Command {
    command.args(SETTINGS.iter().map(argument)).next_line_help(true).max_term_width(100)
}

/// Values are texts to clap: `config` reads them, so that it can tell all problems at once.
fn argument(setting: &Setting) -> Arg {
    let arg = Arg::new(setting.flag)
        .long(setting.flag)
        .value_name(setting.value_name)
        .help(format!("{}\n{}", setting.meaning, notes(setting)))
        .help_heading(setting.group.heading())
        .allow_negative_numbers(true);
    match setting.shape {
        Shape::One => arg.action(ArgAction::Set),
        Shape::Many => arg.action(ArgAction::Append),
        Shape::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
    }
}

fn notes(setting: &Setting) -> String {
    let weaker = setting.weaker_variable.map(|name| format!(" or {name}")).unwrap_or_default();
    match setting.default {
        Some(default) => format!("[default: {default}] [variable: {}{weaker}]", setting.variable),
        None => format!("[variable: {}{weaker}]", setting.variable),
    }
}

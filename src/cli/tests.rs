use std::time::Duration;

use super::*;
use crate::config::SETTINGS;

fn parse_with(args: &[&str], variables: &[(&str, &str)]) -> Result<Command, Stop> {
    let environment = |name: &str| {
        variables.iter().find(|(variable, _)| *variable == name).map(|(_, text)| (*text).to_owned())
    };
    let read_file = |_: &std::path::Path| Err(io::Error::from(io::ErrorKind::NotFound));
    let args = ["pgmq-grpc"].iter().chain(args).map(OsString::from);
    parse(args, Sources { environment: &environment, read_file: &read_file })
}

fn config(args: &[&str]) -> Config {
    match parse_with(args, &[]) {
        Ok(Command::Serve(config)) => *config,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn health(args: &[&str], variables: &[(&str, &str)]) -> HealthCheck {
    match parse_with(args, variables) {
        Ok(Command::Health(check)) => check,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn usage(args: &[&str]) -> String {
    match parse_with(args, &[]) {
        Err(Stop::Usage(error)) => error.to_string(),
        other => panic!("{args:?}: {other:?}"),
    }
}

fn problems(args: &[&str]) -> Vec<String> {
    match parse_with(args, &[]) {
        Err(Stop::Problems(problems)) => problems.sentences().to_vec(),
        other => panic!("{args:?}: {other:?}"),
    }
}

#[test]
fn clap_finds_no_fault_with_the_definition() {
    arguments::program().debug_assert();
}

#[test]
fn serve_is_what_happens_without_a_command() {
    let flags = ["--pool-size", "3", "--ephemeral", "--listen=127.0.0.1:1", "--listen", "unix:/q"];
    let config_without = config(&flags);
    assert_eq!(config_without.pool_size, 3);
    assert_eq!(config_without.listen.len(), 2);
    let with_serve: Vec<&str> = ["serve"].into_iter().chain(flags).collect();
    assert_eq!(config(&with_serve), config_without);
    assert_eq!(config(&[]), config(&["serve"]));
}

#[test]
fn a_switch_can_be_given_a_value() {
    assert!(config(&["--no-install"]).no_install);
    assert!(config(&["--no-install=1"]).no_install);
    assert!(!config(&["--no-install=false"]).no_install);
    assert_eq!(problems(&["--no-install=no"]).len(), 1);
}

#[test]
fn every_setting_is_a_flag_of_both_forms() {
    for setting in SETTINGS {
        let flag = format!("--{}=\u{fffd}", setting.flag);
        assert!(!problems(&[&flag]).is_empty());
        assert!(!problems(&["serve", &flag]).is_empty());
    }
}

#[test]
fn negative_numbers_are_values_that_do_not_fit() {
    assert_eq!(problems(&["--pool-size", "-1", "--max-connections", "-2"]).len(), 2);
}

#[test]
fn health_asks_the_server_of_this_machine() {
    let check = health(&["health"], &[]);
    assert_eq!(check.target.to_string(), "127.0.0.1:50051");
    assert_eq!(check.service, "pgmq.v1.QueueService");
    assert_eq!(check.timeout, Duration::from_secs(3));
    let target = |listen| health(&["health"], &[("PGMQ_GRPC_LISTEN", listen)]).target.to_string();
    assert_eq!(target("0.0.0.0:7"), "127.0.0.1:7");
    assert_eq!(target("[::]:7,unix:/q"), "[::1]:7");
    assert_eq!(target("unix:/q"), "unix:/q");
}

#[test]
fn health_asks_whom_and_what_it_is_told_to() {
    let args = ["health", "--target", "unix:/q", "--service", "", "--timeout", "500ms"];
    let check = health(&args, &[("PGMQ_GRPC_LISTEN", "nonsense")]);
    let target = "unix:/q".parse().expect("an address");
    assert_eq!(check, HealthCheck { target, service: String::new(), timeout: Duration::from_millis(500) });
}

#[test]
fn wrong_values_of_health_are_told_at_once() {
    let problems = problems(&["health", "--target", "x", "--timeout", "-1"]);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("--timeout: \"-1\" is not a duration from 1ms to 10m"));
    assert!(problems[1].starts_with("--target: \"x\" is not an address"));
    assert!(matches!(
        parse_with(&["health"], &[("PGMQ_GRPC_LISTEN", "127.0.0.1:0")]),
        Err(Stop::Problems(_))
    ));
    assert!(matches!(parse_with(&["health"], &[("PGMQ_GRPC_LISTEN", "x")]), Err(Stop::Problems(_))));
}

#[test]
fn the_version_is_one_line() {
    assert_eq!(usage(&["--version"]), format!("pgmq-grpc {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_has_every_option_with_its_default_and_variable() {
    let help = usage(&["--help"]);
    assert_eq!(help, usage(&["-h"]));
    for heading in ["Serving:", "Database:", "Embedded Postgres:", "Limits:", "Logging:", "Examples:"] {
        assert!(help.contains(&format!("\n{heading}\n")), "{heading}\n{help}");
    }
    let one_line = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in SETTINGS {
        assert!(help.contains(&format!("  --{}", setting.flag)), "{}", setting.flag);
        assert!(one_line.contains(setting.meaning), "{}", setting.flag);
        assert!(help.contains(setting.variable), "{}", setting.variable);
    }
}

#[test]
fn the_table_has_every_setting_once() {
    let flags: Vec<String> = option_table().into_iter().map(|row| row.flag).collect();
    let expected: Vec<String> = SETTINGS.iter().map(|setting| format!("--{}", setting.flag)).collect();
    assert_eq!(flags, expected);
    assert!(option_table().iter().all(|row| row.meaning.ends_with('.')));
}

#[test]
fn a_database_url_in_the_wrong_place_is_not_shown() {
    for args in [
        &["postgres://me:s3cr3t@h/app"][..],
        &["serve", "postgres://me:s3cr3t@h/app"],
        &["--database-ur", "postgres://me:s3cr3t@h/app"],
        &["--database-ur=postgres://me:s3cr3t@h/app"],
        &["--no-install", "postgres://me:s3cr3t@h/app"],
        &["health", "host=h password=s3cr3t"],
        &["--database-url", "host=a", "--database-url", "postgres://me:s3cr3t@h/app"],
        &["--database-url", "host=h", "password=s3cr3t"],
    ] {
        let text = usage(args);
        assert!(!text.contains("s3cr3t"), "{args:?}: {text}");
    }
}

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::*;

/// A world with the given variables, flags and files.
#[derive(Default)]
struct World {
    flags: Flags,
    variables: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static str>,
}

impl World {
    fn flag(mut self, flag: &'static str, texts: &[&str]) -> World {
        self.flags.add(flag, texts.iter().map(|text| (*text).to_owned()).collect());
        self
    }

    fn variable(mut self, name: &'static str, text: &'static str) -> World {
        self.variables.insert(name, text);
        self
    }

    fn file(mut self, path: &'static str, text: &'static str) -> World {
        self.files.insert(path, text);
        self
    }

    fn config_file(self, text: &'static str) -> World {
        self.flag("config", &["/q.toml"]).file("/q.toml", text)
    }

    fn with_sources<T>(&self, run: impl FnOnce(Sources<'_>) -> T) -> T {
        let environment = |name: &str| self.variables.get(name).map(|text| (*text).to_owned());
        let read_file = |path: &Path| match self.files.get(path.to_str().expect("UTF-8")) {
            Some(text) => Ok((*text).to_owned()),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        run(Sources { environment: &environment, read_file: &read_file })
    }

    fn load(&self) -> Result<Config, Problems> {
        self.with_sources(|sources| Config::load(&self.flags, sources))
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn problems(&self) -> Vec<String> {
        self.load().expect_err("problems").sentences().to_vec()
    }
}

fn listen_of(config: &Config) -> Vec<String> {
    config.listen.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_given_means_the_documented_defaults() {
    let config = World::default().config();
    assert_eq!(listen_of(&config), ["127.0.0.1:50051"]);
    assert_eq!(config.database, DatabaseSource::Embedded(EmbeddedOptions::default()));
    assert!(!config.no_install);
    assert_eq!((config.pool_size, config.max_waiting_calls, config.max_connections), (8, 4096, 10_000));
    assert_eq!(config.max_message_bytes, 1024 * 1024);
    assert_eq!(config.default_deadline, 30 * SECOND);
    assert_eq!(config.drain_timeout, 25 * SECOND);
    assert_eq!(config.health_interval, 2 * SECOND);
    assert_eq!(config.max_stream_age, Some(HOUR));
    let second = Duration::from_secs(1);
    let transactions =
        TransactionLimits { at_once: 2, wait: 5 * second, idle: 5 * second, total: 60 * second };
    assert_eq!(config.transactions, transactions);
    assert_eq!(config.log.filter, "info".parse().expect("a filter"));
    assert_eq!((config.log.format, config.log.color), (LogFormat::Auto, true));
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let world = World::default().config_file("pool-size = 2");
    assert_eq!(world.config().pool_size, 2);
    let world = world.variable("PGMQ_GRPC_POOL_SIZE", "3");
    assert_eq!(world.config().pool_size, 3);
    let world = world.flag("pool-size", &["4"]);
    assert_eq!(world.config().pool_size, 4);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let world = World::default().config_file("pool-size = 2").variable("PGMQ_GRPC_POOL_SIZE", "");
    assert_eq!(world.config().pool_size, 2);
    let world = World::default()
        .variable("DATABASE_URL", "")
        .variable("PGMQ_GRPC_CONFIG", "")
        .variable("NO_COLOR", "");
    assert_eq!(world.config(), World::default().config());
    assert!(!World::default().variable("NO_COLOR", "1").config().log.color);
}

#[test]
fn variables_that_other_programs_know_are_weaker_than_ours() {
    let world =
        World::default().variable("DATABASE_URL", "host=theirs dbname=d").variable("RUST_LOG", "warn");
    let config = world.config();
    assert!(matches!(&config.database, DatabaseSource::External(url) if url.to_string() == "theirs:5432/d"));
    assert_eq!(config.log.filter, "warn".parse().expect("a filter"));

    let world =
        world.variable("PGMQ_GRPC_DATABASE_URL", "host=ours dbname=d").variable("PGMQ_GRPC_LOG", "debug");
    let config = world.config();
    assert!(matches!(&config.database, DatabaseSource::External(url) if url.to_string() == "ours:5432/d"));
    assert_eq!(config.log.filter, "debug".parse().expect("a filter"));
}

#[test]
fn several_addresses_can_be_given_everywhere() {
    let both = ["127.0.0.1:1", "unix:/q"];
    assert_eq!(listen_of(&World::default().flag("listen", &both).config()), both);
    assert_eq!(
        listen_of(&World::default().variable("PGMQ_GRPC_LISTEN", "127.0.0.1:1, unix:/q").config()),
        both
    );
    assert_eq!(
        listen_of(&World::default().config_file("listen = ['127.0.0.1:1', 'unix:/q']").config()),
        both
    );
    assert_eq!(listen_of(&World::default().config_file("listen = '127.0.0.1:1,unix:/q'").config()), both);
    let any_port = ["127.0.0.1:0", "127.0.0.1:0"];
    assert_eq!(listen_of(&World::default().flag("listen", &any_port).config()), any_port);
}

#[test]
fn the_embedded_postgres_has_its_options() {
    let world = World::default()
        .flag("data-dir", &["/data"])
        .variable("PGMQ_GRPC_POSTGRES_BIN_DIR", "/pg/bin")
        .config_file("postgres-port = 5433\nephemeral = false\nno-install = true\nmax-stream-age = 0");
    let expected = EmbeddedOptions {
        data_dir: Some("/data".into()),
        ephemeral: false,
        bin_dir: Some("/pg/bin".into()),
        tcp_port: Some(5433),
    };
    let config = world.config();
    assert_eq!(config.database, DatabaseSource::Embedded(expected));
    assert!(config.no_install);
    assert_eq!(config.max_stream_age, None);
}

#[test]
fn a_kubernetes_service_link_is_not_a_port_of_ours() {
    let world = World::default().variable("PGMQ_GRPC_POSTGRES_PORT", "tcp://10.0.0.1:5432");
    assert_eq!(world.config(), World::default().config());
}

#[test]
fn each_wrong_value_names_flag_variable_value_and_what_is_right() {
    for (flag, wrong, right) in [
        ("listen", "example.com:1", "is not an address: give IP:PORT, localhost:PORT or unix:/PATH"),
        ("drain-timeout", "soon", "is not a duration from 0s to 1h, such as"),
        ("health-interval", "0", "is not a duration from 100ms to 1h, such as"),
        ("config", "/none", "cannot be read: entity not found"),
        ("no-install", "yes", "is neither true nor false"),
        ("ephemeral", "2", "is neither true nor false"),
        ("data-dir", "", "is not a path"),
        ("postgres-bin-dir", "", "is not a path"),
        ("postgres-port", "0", "is not a whole number from 1 to 65535"),
        ("pool-size", "1001", "is not a whole number from 1 to 1000"),
        ("max-waiting-calls", "0", "is not a whole number from 1 to 1000000"),
        ("default-deadline", "99ms", "is not a duration from 100ms to 1h, such as"),
        ("max-message-bytes", "4MiB", "is not a size from 1 to 3MiB, such as"),
        ("max-connections", "-1", "is not a whole number from 1 to 1000000"),
        ("max-stream-age", "31d", "is not a duration from 1s to 720h, such as"),
        ("max-transactions", "0", "is not a whole number from 1 to 1000"),
        ("max-transactions", "9", "is more than the connections of pool-size"),
        ("transaction-wait", "2h", "is not a duration from 0s to 1h, such as"),
        ("transaction-idle-timeout", "31s", "is not a duration from 1ms to 30s, such as"),
        ("transaction-timeout", "0", "is not a duration from 1ms to 1h, such as"),
        ("log", "inof", "is not a log filter, for \"inof\" is not a level: give a level (error,"),
        ("log-format", "xml", "is none of auto, text and json"),
        ("data-dir", "\u{fffd}", "is not valid UTF-8"),
    ] {
        let problems = World::default().flag(flag, &[wrong]).problems();
        let variable = format!("PGMQ_GRPC_{}", flag.to_uppercase().replace('-', "_"));
        let expected = format!("--{flag} ({variable}): {wrong:?} from the command line {right}");
        assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{problems:?}\n{expected}");
    }
}

#[test]
fn all_problems_of_all_sources_are_told_at_once() {
    let world = World::default()
        .flag("pool-size", &["many"])
        .variable("PGMQ_GRPC_DEFAULT_DEADLINE", "long")
        .variable("DATABASE_URL", "postgres://me:s3cr3t@h/app?nonsense=1")
        .config_file("lissten = 1\nmax-connections = 0");
    let problems = world.load().expect_err("problems");
    let text = problems.to_string();
    let known = text.find("known are").expect("a list of parameters");
    let end = known + text[known..].find('\n').expect("a line");
    assert_eq!(
        text.replace(&text[known..end], "…"),
        "pgmq-grpc cannot start: 5 problems in the configuration
  1. key \"lissten\" of /q.toml is not an option; is listen meant?
  2. --database-url (PGMQ_GRPC_DATABASE_URL): the value from the environment variable DATABASE_URL cannot be used: \
         a parameter is unknown: nonsense; …
  3. --pool-size (PGMQ_GRPC_POOL_SIZE): \"many\" from the command line is not a whole number from 1 to 1000
  4. --default-deadline (PGMQ_GRPC_DEFAULT_DEADLINE): \"long\" from the environment variable \
         PGMQ_GRPC_DEFAULT_DEADLINE is not a duration from 100ms to 1h, such as 500ms, 30s, 2m, 1h or plain seconds
  5. --max-connections (PGMQ_GRPC_MAX_CONNECTIONS): \"0\" from key max-connections of /q.toml is not a whole number \
         from 1 to 1000000
see pgmq-grpc --help for all options"
    );
}

#[test]
fn options_that_exclude_each_other_are_told() {
    let world = World::default()
        .variable("DATABASE_URL", "host=h")
        .flag("ephemeral", &["true"])
        .flag("data-dir", &["/data"])
        .flag("postgres-bin-dir", &["/bin"])
        .flag("postgres-port", &["5433"]);
    let problems = world.problems();
    assert_eq!(problems.len(), 5, "{problems:#?}");
    assert_eq!(
        problems[2],
        "--database-url (PGMQ_GRPC_DATABASE_URL) from the environment variable DATABASE_URL and --ephemeral \
         (PGMQ_GRPC_EPHEMERAL) from the command line exclude each other: the one names a Postgres of yours, the other \
         is for an embedded one; leave one of them out"
    );
    let world = World::default().variable("DATABASE_URL", "host=h").flag("ephemeral", &["false"]);
    assert!(matches!(world.config().database, DatabaseSource::External(_)));
}

#[test]
fn a_ca_file_needs_a_database_url_and_must_be_readable() {
    let world = World::default().flag("database-ca-file", &["/ca.pem"]);
    assert!(
        world.problems()[0].contains("\"/ca.pem\" from the command line is of no use without --database-url")
    );
    let world = world.variable("DATABASE_URL", "host=h");
    assert!(world.problems()[0].contains("names the file \"/ca.pem\", which cannot be read"));
    let config = world.file("/ca.pem", "PEM").config();
    assert!(matches!(config.database, DatabaseSource::External(url) if url.tls == Tls::VerifyFull));
    let world = World::default().variable("DATABASE_URL", "host=h sslcert=/c sslkey=/k sslrootcert=/ca");
    assert_eq!(world.problems().len(), 3);
}

#[test]
fn addresses_are_at_least_one_and_each_once() {
    assert!(World::default().config_file("listen = []").problems()[0].contains("is an empty list"));
    let twice = World::default().variable("PGMQ_GRPC_LISTEN", "localhost:1,127.0.0.1:1");
    assert!(twice.problems()[0].contains("has 127.0.0.1:1 twice"));
}

#[test]
fn no_secret_is_shown() {
    let world = World::default().flag("database-url", &["postgres://me:s3cr3t@h/app"]);
    assert!(!format!("{:?}", world.config()).contains("s3cr3t"));
    for text in ["database-url = ['s3cr3t']", "database-url = 's3cr3t'"] {
        let problems = World::default().config_file(text).load().expect_err("problems");
        assert!(!format!("{problems} {problems:?}").contains("s3cr3t"), "{problems}");
    }
}

#[test]
fn the_configured_addresses_are_found_without_flags() {
    let world = World::default()
        .variable("PGMQ_GRPC_CONFIG", "/q.toml")
        .file("/q.toml", "listen = 'unix:/q'\ndatabase-url = 'host=h'");
    assert_eq!(world.with_sources(configured_listen), Ok(vec!["unix:/q".parse().expect("an address")]));
}

#[test]
fn every_variable_is_made_from_its_flag() {
    for setting in SETTINGS {
        assert_eq!(setting.variable, format!("PGMQ_GRPC_{}", setting.flag.to_uppercase().replace('-', "_")));
    }
}

//! The rules of the code and the contract that no compiler holds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pgmq_grpc::cli::option_table;
use pgmq_grpc::proto::DESCRIPTORS;
use prost::Message;
use prost_types::method_options::IdempotencyLevel;
use prost_types::{DescriptorProto, FileDescriptorSet, MethodDescriptorProto};

const LONGEST_FILE: usize = 600;

/// A source file with its path from the repository's root.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines that are neither comments nor tests, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let ends_at = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let is_tests = self.path.ends_with("/tests.rs");
        let lines = self.text[..ends_at].lines().enumerate().filter(move |_| !is_tests);
        lines.map(|(index, line)| (index + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust files below a directory.
fn sources(directory: &str) -> Vec<Source> {
    let mut directories = vec![root().join(directory)];
    let mut found: Vec<PathBuf> = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().expect("a directory").flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => directories.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    let from_root = |path: &Path| path.strip_prefix(root()).expect("a file of ours").display().to_string();
    found
        .into_iter()
        .map(|path| Source { path: from_root(&path), text: fs::read_to_string(&path).expect("a text") })
        .collect()
}

/// Fails with every line of code that has one of these words and is not excepted.
#[track_caller]
fn forbid(words: &[&str], why: &str, concerns: impl Fn(&Source) -> bool) {
    let mut found = Vec::new();
    for source in sources("src").iter().filter(|source| concerns(source)) {
        for (number, line) in source.code() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{why}\n{}", found.join("\n"));
}

#[test]
fn only_the_outer_layers_know_grpc() {
    let inner = ["src/pg/", "src/domain/", "src/engine/", "src/queue/", "src/config/"];
    let words = ["tonic", "proto::", "crate::service", "crate::server"];
    forbid(&words, "gRPC belongs to service and server", |source| source.is_in(&inner));
}

#[test]
fn the_inner_layers_do_not_know_the_outer_ones() {
    forbid(&["crate::queue", "crate::engine"], "pg knows domain and config only", |source| {
        source.is_in(&["src/pg/"])
    });
    forbid(&["crate::pg", "crate::queue"], "the engine knows the domain only", |source| {
        source.is_in(&["src/engine/"])
    });
    let others = ["crate::pg", "crate::queue", "crate::engine", "crate::config", "crate::cli"];
    forbid(&others, "the domain knows nothing but itself", |source| source.is_in(&["src/domain/"]));
}

#[test]
fn only_pg_knows_postgres() {
    // The address of a Postgres is read into the client's own type; telemetry bounds what the crates log.
    let places = ["src/pg/", "src/config/database_url/", "src/telemetry.rs"];
    let words = ["tokio_postgres", "bb8", "sqlx", " pgmq::"];
    forbid(&words, "Postgres belongs to pg", |source| !source.is_in(&places));
    let sql = ["SELECT ", "INSERT INTO", "DELETE FROM", "UPDATE ", "ALTER TABLE", "CREATE TABLE"];
    forbid(&sql, "SQL belongs to pg", |source| !source.is_in(&["src/pg/"]));
}

#[test]
fn only_config_reads_the_environment() {
    // Where programs are is no setting of ours.
    let places = ["src/config/", "src/pg/embedded/binaries.rs"];
    forbid(&["env::var"], "the environment belongs to config", |source| !source.is_in(&places));
}

#[test]
fn statuses_are_made_in_one_place() {
    forbid(&["Status::internal"], "return a domain::Error", |_| true);
    let makers = ["Status::new", "Status::unavailable", "Status::invalid_argument", "Status::not_found"];
    forbid(&makers, "statuses are made in service/status.rs", |source| {
        source.path != "src/service/status.rs"
    });
}

#[test]
fn nothing_is_left_undone_or_silenced() {
    let words = ["TODO", "FIXME", "unimplemented!", "todo!", "#[allow(", "#![allow(", ".unwrap()"];
    forbid(&words, "finish it, or say why by #[expect(…, reason = …)]", |_| true);
    let mut found = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        // This file names the words.
        for word in ["TODO", "FIXME"].iter().filter(|_| source.path != "tests/tidy.rs") {
            if source.text.contains(word) {
                found.push(format!("{}: {word}", source.path));
            }
        }
    }
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn no_file_is_too_long() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        let lines = source.text.lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines: split it", source.path);
    }
}

/// The files of the contract.
fn contract() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors");
    set.file.retain(|file| file.package() == "pgmq.v1");
    set
}

/// The RPCs with their services' names.
fn methods() -> Vec<(String, MethodDescriptorProto)> {
    let services = contract().file.into_iter().flat_map(|file| file.service);
    services
        .flat_map(|service| {
            let name = service.name().to_owned();
            service.method.into_iter().map(move |method| (name.clone(), method))
        })
        .collect()
}

fn message(name: &str) -> DescriptorProto {
    let mut messages = contract().file.into_iter().flat_map(|file| file.message_type);
    messages.find(|message| message.name() == name).unwrap_or_else(|| panic!("no message {name}"))
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

fn camel(name: &str) -> String {
    let word = |word: &str| word[..1].to_owned() + &word[1..].to_lowercase();
    name.split('_').map(word).collect()
}

#[test]
fn every_rpc_is_in_the_readme_and_nothing_else_is() {
    let readme = read("README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: BTreeSet<&str> =
        rows.filter_map(|row| row.split('`').next()).filter(|name| name.contains("Service/")).collect();
    let methods = methods();
    let names: BTreeSet<String> =
        methods.iter().map(|(service, method)| format!("{service}/{}", method.name())).collect();
    assert_eq!(rows, names.iter().map(String::as_str).collect());
}

#[test]
fn every_rpc_is_called_by_a_test() {
    // The log's tests call everything once and look at no answer, so they do not count.
    let looks_at_answers = |source: &Source| !source.path.ends_with("logs.rs");
    let tests: String =
        sources("tests/it").into_iter().filter(looks_at_answers).map(|source| source.text).collect();
    for (service, method) in methods() {
        let call = format!(".{}(", snake(method.name()));
        assert!(tests.contains(&call), "no test in tests/it calls {service}/{}", method.name());
    }
}

#[test]
fn every_rpc_has_an_idempotency_level() {
    for (service, method) in methods() {
        let options = method.options.clone().unwrap_or_default();
        assert!(options.idempotency_level.is_some(), "{service}/{}", method.name());
        let reads_only = method.name().starts_with("Get") || method.name().starts_with("List");
        if reads_only {
            let level = options.idempotency_level();
            assert_eq!(level, IdempotencyLevel::NoSideEffects, "{service}/{}", method.name());
        }
    }
}

#[test]
fn every_reason_can_be_reached() {
    let status = read("src/service/status.rs");
    let mut enums = contract().file.into_iter().flat_map(|file| file.enum_type);
    let reasons = enums.find(|found| found.name() == "ErrorReason").expect("the reasons");
    for value in reasons.value.iter().filter(|value| value.number() != 0) {
        let name = value.name().strip_prefix("ERROR_REASON_").expect("the prefix");
        let used = format!("Reason::{})", camel(name));
        assert!(status.contains(&used), "{} is made by nothing in src/service/status.rs", value.name());
    }
}

#[test]
fn a_message_to_send_has_the_same_fields_wherever_it_is() {
    let fields = |name: &str| {
        let message = message(name);
        let fields = message.field.iter().filter(|field| (2..=7).contains(&field.number()));
        let fields = fields.map(|field| {
            let oneof = field.oneof_index.map(|index| message.oneof_decl[index as usize].name().to_owned());
            (field.number(), field.name().to_owned(), field.r#type(), field.type_name().to_owned(), oneof)
        });
        fields.collect::<Vec<_>>()
    };
    let outgoing = fields("OutgoingMessage");
    assert!(!outgoing.is_empty());
    assert_eq!(fields("SendRequest"), outgoing);
    assert_eq!(fields("SendTopicRequest"), outgoing);
}

/// The calls that clients repeat by themselves, as the contract's service config says.
fn is_repeated(method: &str) -> bool {
    let named = [
        "ValidateName",
        "TestRouting",
        "Delete",
        "Archive",
        "Release",
        "DeadLetter",
        "CreateQueue",
        "UpdateQueue",
        "BindTopic",
        "UnbindTopic",
        "Read",
        "Watch",
    ];
    method.starts_with("Get") || method.starts_with("List") || named.contains(&method)
}

#[test]
fn the_service_config_repeats_what_may_be_repeated() {
    let config: serde_json::Value =
        serde_json::from_str(&read("proto/pgmq/v1/service_config.json")).expect("JSON");
    let entries = config["methodConfig"].as_array().expect("method configs");
    let names = entries.iter().filter(|entry| entry["retryPolicy"].is_object());
    let names = names.flat_map(|entry| entry["name"].as_array().expect("names"));
    let named: BTreeSet<(String, String)> = names
        .map(|name| {
            let service = name["service"].as_str().expect("a service");
            let service = service.strip_prefix("pgmq.v1.").expect("a service of ours");
            (service.to_owned(), name["method"].as_str().expect("a method").to_owned())
        })
        .collect();
    let methods = methods().into_iter().map(|(service, method)| (service, method.name().to_owned()));
    let expected: BTreeSet<_> = methods.filter(|(_, method)| is_repeated(method)).collect();
    assert_eq!(named, expected);
}

#[test]
fn the_readme_has_every_option_as_the_program_has_it() {
    let readme = read("README.md");
    let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| `--")).collect();
    let expected: Vec<String> = option_table()
        .into_iter()
        .map(|option| {
            let weaker = option.weaker_variable.map(|variable| format!(", else `{variable}`"));
            let default = option.default.map(|default| format!("`{default}`")).unwrap_or_default();
            let (flag, variable, weaker) = (option.flag, option.variable, weaker.unwrap_or_default());
            format!("| `{flag}` | `{variable}`{weaker} | {default} | {} |", option.meaning)
        })
        .collect();
    assert_eq!(rows, expected);
}

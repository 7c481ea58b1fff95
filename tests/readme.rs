//! The README's first message works word for word.
//!
//! Blocks that begin with ```` ```console test ```` are run in order: a line after `$ ` is a command for bash, the lines
//! after it are what it prints. `…` stands for any text within a line, and on a line of its own for any lines.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgmq_grpc::pg::embedded;

const ADDRESS: &str = "127.0.0.1:50051";

/// A command with the lines that it should print.
#[derive(Debug, PartialEq)]
struct Step {
    command: String,
    printed: Vec<String>,
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        match (in_block, line) {
            (false, line) => in_block = line.trim() == "```console test",
            (true, "```") => in_block = false,
            (true, line) => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { command: command.to_owned(), printed: Vec::new() });
                }
                (None, Some(step)) => step.printed.push(line.to_owned()),
                (None, None) => panic!("a block begins with a command, not with {line:?}"),
            },
        }
    }
    steps
}

/// Whether lines are as expected.
fn agree(expected: &[String], actual: &[&str]) -> bool {
    match (expected, actual) {
        ([], []) => true,
        ([wild, rest @ ..], _) if wild.trim() == "…" => {
            (0..=actual.len()).any(|skipped| agree(rest, &actual[skipped..]))
        }
        ([line, expected @ ..], [first, actual @ ..]) => {
            line_agrees(line.trim_end(), first.trim_end()) && agree(expected, actual)
        }
        _ => false,
    }
}

fn line_agrees(expected: &str, actual: &str) -> bool {
    match expected.split_once('…') {
        None => expected == actual,
        Some((before, after)) => actual.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| line_agrees(after, &rest[at..]))
        }),
    }
}

#[test]
fn an_ellipsis_stands_for_any_text() {
    let expected: Vec<String> = ["{", "  \"id\": \"…\",", "…", "}"].map(str::to_owned).to_vec();
    assert!(agree(&expected, &["{", "  \"id\": \"17\",", "}"]));
    assert!(agree(&expected, &["{", "  \"id\": \"17\",", "  1", "  2", "}"]));
    assert!(!agree(&expected, &["{", "  \"id\": 17,", "}"]));
    assert!(!agree(&expected, &["{", "  \"id\": \"17\",", "}", "more"]));
}

#[test]
fn commands_are_found_with_what_they_print() {
    let text = "```console\n$ no\n```\n```console test\n$ a b\nc\n$ d\n```\n$ no";
    let step = |command: &str, printed: &[&str]| Step {
        command: command.to_owned(),
        printed: printed.iter().map(|&line| line.to_owned()).collect(),
    };
    assert_eq!(steps(text), [step("a b", &["c"]), step("d", &[])]);
}

/// Says aloud that the test cannot run here, or fails where it must (`CI=true`).
#[expect(clippy::disallowed_methods, reason = "tests have no configuration but the environment")]
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "the README must be tried in CI: {why}");
    eprintln!("SKIPPED the README: {why}");
}

/// The PATH with the place where `make test` puts its tools.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration but the environment")]
fn path_with_tools() -> std::ffi::OsString {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([tools]);
    std::env::join_paths(places).expect("a path")
}

/// A running server; ends in order, so that its Postgres ends too.
struct Server(Child);

impl Server {
    fn start(binaries: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgmq-grpc"));
        command.args(["--listen", ADDRESS, "--ephemeral", "--postgres-bin-dir"]).arg(binaries);
        for variable in ["DATABASE_URL", "PGMQ_GRPC_DATABASE_URL", "PGMQ_GRPC_DATA_DIR", "PGMQ_GRPC_CONFIG"] {
            command.env_remove(variable);
        }
        Self(command.stdin(Stdio::null()).spawn().expect("a server"))
    }

    /// Waits until it serves.
    fn wait(&mut self) {
        let mut probe = Command::new(env!("CARGO_BIN_EXE_pgmq-grpc"));
        probe.args(["health", "--target", ADDRESS]).stderr(Stdio::null());
        while !probe.status().expect("a probe").success() {
            assert!(self.0.try_wait().expect("a child").is_none(), "the server has ended");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

#[test]
fn the_first_message_goes_as_the_readme_says() {
    let path = path_with_tools();
    if !std::env::split_paths(&path).any(|place| place.join("grpcurl").is_file()) {
        return skip("grpcurl is neither on the PATH nor in target/tools/bin");
    }
    if TcpListener::bind(ADDRESS).is_err() {
        return skip(&format!("{ADDRESS} is taken"));
    }
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("a README");
    let steps = steps(&readme);
    assert!(steps.len() >= 4, "{steps:?}");
    let mut server = Server::start(&binaries());
    server.wait();

    for step in steps {
        let bash = Command::new("bash")
            .arg("-c")
            .arg(format!("exec 2>&1\n{}", step.command))
            .env("PATH", &path)
            .output();
        let printed = String::from_utf8(bash.expect("bash").stdout).expect("UTF-8");
        let actual: Vec<&str> = printed.trim_end().lines().collect();
        let expected = step.printed.join("\n");
        assert!(
            agree(&step.printed, &actual),
            "$ {}\n{printed}\nbut the README says\n{expected}",
            step.command
        );
    }
}

/// A downloaded Postgres, the same that the integration tests use.
fn binaries() -> PathBuf {
    let cache = std::env::temp_dir().join("pgmq-grpc-test-postgres");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let binaries = runtime.block_on(embedded::download("18", &cache)).expect("a download of Postgres");
    binaries.directory().to_owned()
}

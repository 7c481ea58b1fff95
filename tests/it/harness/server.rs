//! Real servers: the program itself as a child process, on a free port.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, TestDatabase, default_layout};

/// A running server. Dropped, it is killed; a panic or an error in its log then fails the test.
pub(crate) struct Server {
    child: Child,
    /// Where it listens, as `127.0.0.1:port`.
    pub(crate) address: String,
    log: Arc<Mutex<Vec<String>>>,
    /// Reads the log until the server has closed it.
    reader: std::thread::JoinHandle<()>,
    errors_expected: bool,
}

impl Server {
    /// A server on a test's database.
    pub(crate) async fn start_on(database: &TestDatabase, flags: &[&str]) -> Self {
        let url = ["--database-url", &database.url];
        Self::start(&[&url, flags].concat()).await
    }

    /// A server of these flags, listening on a free port, once it says that it has started.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        Self::start_as(Self::command(), flags).await
    }

    /// The same of a command with an environment of its own.
    pub(crate) async fn start_as(command: Command, flags: &[&str]) -> Self {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let started = tokio::task::spawn_blocking(move || Self::spawn(command, &flags).wait_until_started());
        started.await.expect("a start that does not panic").unwrap_or_else(|log| panic!("no start:\n{log}"))
    }

    /// A start that is expected to fail: its exit status and its log.
    pub(crate) async fn fail_to_start(flags: &[&str]) -> (ExitStatus, String) {
        Self::fail_to_start_as(Self::command(), flags).await
    }

    /// The same of a command with an environment of its own.
    pub(crate) async fn fail_to_start_as(command: Command, flags: &[&str]) -> (ExitStatus, String) {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let failed = tokio::task::spawn_blocking(move || {
            let mut server = Self::spawn(command, &flags);
            server.errors_expected = true;
            let status = server.wait_for_exit();
            (status, server.log())
        });
        failed.await.expect("a start that does not panic")
    }

    /// The program with this run's environment and a free port.
    pub(crate) fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgmq-grpc"));
        for (variable, _) in std::env::vars().filter(|(variable, _)| variable.starts_with("PGMQ_GRPC_")) {
            command.env_remove(variable);
        }
        command.env_remove("DATABASE_URL").env_remove("RUST_LOG");
        command.env("PGMQ_GRPC_QUEUE_LAYOUT", default_layout());
        command
    }

    fn spawn(mut command: Command, flags: &[String]) -> Self {
        for (flag, default) in [("--listen", "127.0.0.1:0"), ("--log-format", "json"), ("--log", "info")] {
            if !flags.iter().any(|given| given == flag) {
                command.args([flag, default]);
            }
        }
        command.args(flags);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a server");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, errors) = (Arc::clone(&log), child.stderr.take().expect("its errors"));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                lines.lock().expect("the log").push(line);
            }
        });
        Self { child, address: String::new(), log, reader, errors_expected: false }
    }

    fn wait_until_started(mut self) -> Result<Self, String> {
        let started = Instant::now();
        loop {
            let line = self.log_lines().into_iter().find(|line| line.contains("\"started\""));
            if let Some(line) = line {
                let record: serde_json::Value = serde_json::from_str(&line).expect("a record of JSON");
                let listen = record["listen"].as_str().or(record["fields"]["listen"].as_str());
                let addresses = listen.expect("its addresses").split(',');
                self.address = addresses.map(str::to_owned).next().expect("an address");
                return Ok(self);
            }
            let ended = self.child.try_wait().expect("a child").is_some();
            if ended || started.elapsed() > PATIENCE {
                self.errors_expected = true;
                return Err(self.log());
            }
            #[expect(clippy::disallowed_methods, reason = "on a thread that may wait")]
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// From here on errors in the log are what the test is about.
    pub(crate) fn expect_errors(&mut self) {
        self.errors_expected = true;
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.log_lines().join("\n")
    }

    /// The lines logged so far.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.lock().expect("the log").clone()
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("a living server");
    }

    /// Waits for the end, at most [`PATIENCE`].
    pub(crate) async fn exit(mut self) -> (ExitStatus, String) {
        let waited = tokio::task::spawn_blocking(move || {
            let status = self.wait_for_exit();
            (status, self.log())
        });
        waited.await.expect("an end that does not panic")
    }

    /// Waits for the end and for the last line of the log.
    fn wait_for_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            match self.child.try_wait().expect("a child") {
                Some(status) if self.reader.is_finished() => return status,
                _ => {}
            }
            assert!(started.elapsed() < PATIENCE, "the server does not end:\n{}", self.log());
            #[expect(clippy::disallowed_methods, reason = "on a thread that may wait")]
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the server:\n{}", self.log());
            return;
        }
        let log = self.log();
        assert!(!log.contains("panicked"), "the server panicked:\n{log}");
        assert!(
            self.errors_expected || !log.contains("\"level\":\"ERROR\""),
            "the server logged an error:\n{log}"
        );
    }
}

/// A path as a flag's value.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}

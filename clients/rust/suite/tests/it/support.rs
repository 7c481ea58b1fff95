//! What the tests share.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pgmq_grpc_client::{Client, Queue, Service};
use tonic::Status;
use tower::ServiceExt as _;

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn client() -> Client {
    Client::connect(None).expect("the target is usable")
}

/// A new queue that no other test has.
pub(crate) async fn new_queue(client: &Client) -> Queue {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock that is set");
    let queue = client.queue(format!("rust_{:x}_{number}", since.as_nanos() as u64));
    queue.create().await.expect("the queue is created");
    queue
}

/// Waits until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let until = Instant::now() + Duration::from_secs(30);
    while !check().await {
        assert!(Instant::now() < until, "{what} has not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A layer that counts calls to one path, and loses the answers to the first ones, as a broken connection would.
#[derive(Clone)]
pub(crate) struct Loses {
    pub(crate) path: &'static str,
    pub(crate) answers: usize,
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Loses {
    pub(crate) fn first(answers: usize, path: &'static str) -> Self {
        Self { path, answers, calls: Arc::default() }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl tower::Layer<Service> for Loses {
    type Service = Losing;

    fn layer(&self, service: Service) -> Losing {
        Losing { loses: self.clone(), service }
    }
}

#[derive(Clone)]
pub(crate) struct Losing {
    loses: Loses,
    service: Service,
}

impl tower::Service<http::Request<tonic::body::Body>> for Losing {
    type Response = http::Response<tonic::body::Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let Self { loses, service } = self.clone();
        async move {
            let loses = request.uri().path().ends_with(loses.path)
                && loses.calls.fetch_add(1, Ordering::Relaxed) < loses.answers;
            let answer = service.oneshot(request).await?;
            if loses { Err(Status::unavailable("the answer was lost")) } else { Ok(answer) }
        }
        .boxed()
    }
}

/// A server of a test's own, on a Unix socket. It ends with the test, and its data too.
pub(crate) struct Server {
    program: OsString,
    directory: PathBuf,
    postgres_port: u16,
    process: Option<Child>,
}

impl Server {
    /// Starts one, if the test is told where the program is.
    pub(crate) async fn start(name: &str) -> Option<Self> {
        let Some(program) = std::env::var_os("PGMQ_GRPC_SERVER") else {
            eprintln!("PGMQ_GRPC_SERVER is not set: no server is started");
            return None;
        };
        let directory = std::env::temp_dir().join(format!("pgmq-grpc-rust-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let postgres_port = free.local_addr().expect("an address").port();
        drop(free);
        let mut server = Self { program, directory, postgres_port, process: None };
        server.start_again().await;
        Some(server)
    }

    pub(crate) fn target(&self) -> String {
        format!("unix:{}", self.directory.join("server.sock").display())
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.target().as_str()).expect("the target is usable")
    }

    /// Ends it: by SIGTERM as it is meant to be, or by SIGKILL as a crash would.
    pub(crate) async fn end(&mut self, signal: &str) {
        let Some(mut process) = self.process.take() else { return };
        let id = process.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().expect("a signal is sent");
        assert!(sent.success(), "{sent}");
        // Its database has to end with it, and tasks of the test go on meanwhile.
        let ended = tokio::task::spawn_blocking(move || process.wait());
        ended.await.expect("it is waited for").expect("it has ended");
    }

    pub(crate) async fn start_again(&mut self) {
        let process = Command::new(&self.program)
            .args(["--listen", &self.target(), "--postgres-port", &self.postgres_port.to_string()])
            .arg("--data-dir")
            .arg(self.directory.join("data"))
            .env_remove("PGMQ_GRPC_LISTEN")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        self.process = Some(process);
        let client = self.client();
        eventually("a server on a Unix socket", || async { client.get_server_info().await.is_ok() }).await;
    }

    /// A connection to its database.
    pub(crate) async fn sql(&self) -> tokio_postgres::Client {
        let password = std::fs::read_to_string(self.directory.join("data/password")).expect("a password");
        let address = format!("postgres://pgmq:{password}@127.0.0.1:{}/pgmq", self.postgres_port);
        let (sql, connection) =
            tokio_postgres::connect(&address, tokio_postgres::NoTls).await.expect("the database answers");
        tokio::spawn(connection);
        sql
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGTERM, so that the embedded database ends too.
            let _ = Command::new("kill").arg(process.id().to_string()).status();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

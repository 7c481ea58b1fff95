//! From the command line to a server that answers: configuration, addresses, health, reflection.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Command;

use pgmq_grpc::proto::v1::{GetQueueRequest, SendRequest};
use tempfile::TempDir;
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::health::{self, probe};
use crate::harness::server::text;
use crate::harness::{Client, Refusal, Server, Test, TestDatabase};

const SERVICES: [&str; 3] = ["pgmq.v1.QueueService", "pgmq.v1.TopicService", "pgmq.v1.AdminService"];

#[tokio::test]
async fn all_problems_of_all_sources_are_told_at_once() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("pgmq-grpc.toml");
    fs::write(&file, "pool_size = 3\ndefault-deadline = '1ms'\n").unwrap();
    let mut command = Server::command();
    command.env("PGMQ_GRPC_MAX_CONNECTIONS", "many");
    command.env("DATABASE_URL", "postgres://me:s3cr3t@host:port/db");
    let flags = ["--config", text(&file), "--pool-size", "0", "--listen", "nowhere", "--log", "loud"];

    let (status, told) = Server::fail_to_start_as(command, &flags).await;

    assert_eq!(status.code(), Some(2), "{told}");
    for part in [
        "7 problems in the configuration",
        "key \"pool_size\"",
        "is pool-size meant?",
        "--default-deadline",
        "key default-deadline of",
        "--max-connections",
        "environment variable PGMQ_GRPC_MAX_CONNECTIONS",
        "--pool-size",
        "is not a whole number from 1 to 1000",
        "--listen",
        "\"nowhere\"",
        "--log",
        "see pgmq-grpc --help",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    assert!(!told.contains("s3cr3t"), "{told}");
}

#[tokio::test]
async fn flags_are_stronger_than_the_environment_and_that_is_stronger_than_the_file() {
    let database = TestDatabase::create().await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("pgmq-grpc.toml");
    fs::write(&file, format!("max-message-bytes = 111\ndatabase-url = '{}'\n", database.url)).unwrap();
    let with_file = || {
        let mut command = Server::command();
        command.env("PGMQ_GRPC_CONFIG", &file);
        command
    };
    let with_both = || {
        let mut command = with_file();
        command.env("PGMQ_GRPC_MAX_MESSAGE_BYTES", "222");
        command
    };

    assert_eq!(message_limit(with_file(), &[]).await, "111");
    assert_eq!(message_limit(with_both(), &[]).await, "222");
    assert_eq!(message_limit(with_both(), &["--max-message-bytes", "333"]).await, "333");
}

/// The limit that a server names when a message is too large.
async fn message_limit(command: Command, flags: &[&str]) -> String {
    let server = Server::start_as(command, flags).await;
    let mut client = Client::connect(&server).await;
    let message = format!("\"{}\"", "x".repeat(1_000));
    let send = SendRequest { queue: "orders".to_owned(), message, ..Default::default() };
    let refused = client.queue.send(send).await.unwrap_err();
    let refusal = Refusal::expect_invalid(&refused, "MESSAGE_TOO_LARGE", "message");
    refusal.metadata["limit"].clone()
}

#[test]
fn help_and_version_go_to_standard_output_and_succeed() {
    let print = |args: &[&str]| {
        let output = Server::command().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(print(&["--version"]), format!("pgmq-grpc {}\n", env!("CARGO_PKG_VERSION")));
    let help = print(&["--help"]);
    for part in ["--database-url", "PGMQ_GRPC_DATABASE_URL", "Examples:", "pgmq-grpc health"] {
        assert!(help.contains(part), "{part}\n{help}");
    }
    assert!(print(&["health", "--help"]).contains("--target"));

    let unknown = Server::command().arg("--colour").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();

    // No database of this name exists: the address is looked at first.
    let flags = ["--listen", &address, "--database-url", "postgres://127.0.0.1:1/nowhere"];
    let (status, log) = Server::fail_to_start(&flags).await;

    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot listen on {address}: Address already in use")), "{log}");
}

#[tokio::test]
async fn several_addresses_serve_and_a_socket_file_goes_with_its_server() {
    let database = TestDatabase::create().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("queue.sock");
    let unix = format!("unix:{}", path.display());
    let listen = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--listen", &unix];
    let server = Server::start_on(&database, &listen).await;

    let started = server.log_lines().into_iter().find(|line| line.contains("\"started\"")).unwrap();
    let started: serde_json::Value = serde_json::from_str(&started).unwrap();
    let addresses: Vec<&str> = started["listen"].as_str().unwrap().split(',').collect();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    assert_ne!(addresses[0], addresses[1]);
    assert_eq!(addresses[2], unix);

    Client::connect_to(&unix).await.create("orders").await;
    for address in &addresses[..2] {
        Client::connect_to(&format!("http://{address}")).await.send("orders", "{}").await;
    }
    let probed = probe(&["--target", &unix]).await;
    assert_eq!(probed.status.code(), Some(0));

    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (status, log) = server.exit().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!path.exists());
}

#[tokio::test]
async fn a_dead_socket_file_is_replaced_a_living_one_and_other_files_are_not() {
    let database = TestDatabase::create().await;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("queue.sock");
    let unix = format!("unix:{}", path.display());

    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = Server::start_on(&database, &["--listen", "127.0.0.1:0", "--listen", &unix]).await;
    Client::connect_to(&unix).await.create("orders").await;

    let (status, log) = Server::fail_to_start(&["--listen", &unix, "--database-url", &database.url]).await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("cannot listen on {unix}: Address already in use")), "{log}");
    Client::connect_to(&unix).await.send("orders", "{}").await;
    drop(server);

    let letter = directory.path().join("letter.txt");
    fs::write(&letter, "dear reader").unwrap();
    let unix = format!("unix:{}", letter.display());
    let (status, log) = Server::fail_to_start(&["--listen", &unix, "--database-url", &database.url]).await;
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(fs::read_to_string(&letter).unwrap(), "dear reader");
}

#[tokio::test]
async fn every_service_has_a_health() {
    let test = Test::start().await;
    health::serving(&test.client).await;
    for service in SERVICES.into_iter().chain([""]) {
        let status = health::check(&test.client.channel, service).await.unwrap();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let unknown = health::check(&test.client.channel, "pgmq.v1.CoffeeService").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn the_health_command_tells_by_its_exit_code() {
    let test = Test::start().await;
    health::serving(&test.client).await;
    let address = test.server.address.clone();
    let served = probe(&["--target", &address]).await;
    assert_eq!(served.status.code(), Some(0), "{served:?}");
    assert!(served.stderr.is_empty(), "{served:?}");
    for service in SERVICES.into_iter().chain([""]) {
        let served = probe(&["--target", &address, "--service", service]).await;
        assert_eq!(served.status.code(), Some(0), "{service}");
    }

    let unknown = probe(&["--target", &address, "--service", "pgmq.v1.CoffeeService"]).await;
    assert_eq!(unknown.status.code(), Some(1));

    let empty = TestDatabase::create_empty().await;
    let server = Server::start_on(&empty, &["--no-install"]).await;
    let not_serving = probe(&["--target", &server.address]).await;
    assert_eq!(not_serving.status.code(), Some(1));
    let told = String::from_utf8_lossy(&not_serving.stderr);
    assert!(told.contains(&format!("{} answers NOT_SERVING", server.address)), "{told}");

    drop(server);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let gone = probe(&["--target", &gone]).await;
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("does not answer"), "{gone:?}");
    assert_eq!(probe(&["--timeout", "soon"]).await.status.code(), Some(2));
}

/// Lists the services by one version of reflection.
macro_rules! listed_services {
    ($version:ident, $channel:expr) => {{
        use reflection::server_reflection_request::MessageRequest;
        use reflection::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::$version as reflection;
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = reflection::ServerReflectionRequest { message_request, ..Default::default() };
        let mut client = reflection::server_reflection_client::ServerReflectionClient::new($channel);
        let answers = client.server_reflection_info(tokio_stream::iter([request])).await;
        let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
            panic!("{answer:?}");
        };
        listed.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
    }};
}

#[tokio::test]
async fn both_versions_of_reflection_list_the_services() {
    let test = Test::start().await;
    let by_v1 = listed_services!(v1, test.client.channel.clone());
    let by_v1alpha = listed_services!(v1alpha, test.client.channel.clone());
    for listed in [by_v1, by_v1alpha] {
        for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
            assert!(listed.iter().any(|name| name == service), "{listed:?}");
        }
    }
}

#[tokio::test]
async fn the_started_line_says_what_runs_where() {
    let test = Test::start().await;
    let lines = test.server.log_lines();
    let started = lines.iter().find(|line| line.contains("\"started\"")).unwrap();
    let started: serde_json::Value = serde_json::from_str(started).unwrap();
    assert_eq!(started["level"], "INFO");
    assert_eq!(started["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(started["listen"], *test.server.address);
    let database = started["database"].as_str().unwrap();
    assert!(database.ends_with(&format!("/{}", test.database.name)), "{database}");
    assert!(!database.contains('@'), "{database}");
    let version: String = test.value("SELECT version FROM pgmq.__pgmq_migrations ORDER BY 1 DESC").await;
    assert!(!version.is_empty());
    assert!(started["pgmq"].as_str().unwrap().ends_with("(sql)"), "{started}");
}

#[tokio::test]
async fn people_get_a_banner_with_a_line_to_paste() {
    let database = TestDatabase::create().await;
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut command = tokio::process::Command::from(Server::command());
    command.args(["--listen", "127.0.0.1:0", "--log-format", "text", "--database-url", &database.url]);
    command.stdout(output.reopen().unwrap()).stderr(std::process::Stdio::null()).kill_on_drop(true);
    let _server = command.spawn().unwrap();

    let banner = crate::harness::eventually("the banner", async || {
        fs::read_to_string(output.path()).ok().filter(|text| text.contains("CreateQueue"))
    })
    .await;
    for part in ["pgmq-grpc", "listening   127.0.0.1:", "database", "pgmq ", "grpcurl -plaintext -d"] {
        assert!(banner.contains(part), "{part}\n{banner}");
    }
    assert!(banner.contains(&format!("/{}", database.name)), "{banner}");
}

#[tokio::test]
async fn a_request_id_of_the_caller_is_used_and_a_bad_one_is_replaced() {
    let mut test = Test::start().await;
    let mut ask = async |id: &str| {
        let mut request = Request::new(GetQueueRequest { queue: "nowhere".to_owned() });
        request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        let refused = test.client.queue.get_queue(request).await.unwrap_err();
        Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
        refused.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(ask("order-4711").await, "order-4711");
    for bad in ["", "two words", &"x".repeat(129)] {
        let id = ask(bad).await;
        assert_eq!(id.len(), 36, "{id}");
    }
}

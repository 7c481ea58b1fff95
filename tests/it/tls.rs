//! TLS to Postgres, with libpq's meanings of `sslmode`, against certificates of an authority of the test's own.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgmq_grpc::proto::v1::ListQueuesRequest;
use tempfile::TempDir;
use tonic::Code;

use crate::harness::own_postgres::open_directory;
use crate::harness::server::text;
use crate::harness::{Client, OwnPostgres, Refusal, Server, health, skip};

/// An authority, and a certificate of it for `localhost` alone.
struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Makes them by the openssl program; none without it.
    fn make() -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            skip("TLS to Postgres", "there is no openssl program");
            return None;
        }
        let certificates = Self { directory: open_directory() };
        let names = "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
        fs::write(certificates.file("names"), names).unwrap();
        for step in [
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=stranger -keyout other.key -out other.pem",
            "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
        ] {
            let mut openssl = Command::new("openssl");
            let made =
                openssl.args(step.split(' ')).current_dir(certificates.directory.path()).output().unwrap();
            assert!(made.status.success(), "{step}: {}", String::from_utf8_lossy(&made.stderr));
        }
        Some(certificates)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Gives a file to Postgres' user, in its own directory.
    fn hand_over(&self, name: &str, cluster: &Path) {
        let target = cluster.join(name);
        fs::copy(self.file(name), &target).unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o600)).unwrap();
        let owner = cluster.metadata().unwrap();
        std::os::unix::fs::chown(&target, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// A Postgres with a certificate, which takes connections over TCP by TLS alone.
struct Secured {
    certificates: Certificates,
    postgres: OwnPostgres,
    password: String,
}

impl Secured {
    async fn start() -> Option<Self> {
        let certificates = Certificates::make()?;
        let postgres = OwnPostgres::start().await;
        let cluster = postgres.cluster();
        certificates.hand_over("server.pem", &cluster);
        certificates.hand_over("server.key", &cluster);
        fs::write(
            cluster.join("pg_hba.conf"),
            "local all all scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n",
        )
        .unwrap();
        for setting in ["ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.key'", "ssl = on"] {
            postgres.run(&format!("ALTER SYSTEM SET {setting}")).await;
        }
        postgres.run("SELECT pg_reload_conf()").await;
        let (_, rest) = postgres.url.split_once(':').and_then(|(_, rest)| rest.split_once(':')).unwrap();
        let password = rest.split_once('@').unwrap().0.to_owned();
        Some(Self { certificates, postgres, password })
    }

    /// Its address under a host name, with these parameters.
    fn url(&self, host: &str, parameters: &str) -> String {
        format!("postgres://pgmq:{}@{host}:{}/pgmq?{parameters}", self.password, self.postgres.port)
    }

    /// A parameter that trusts the authority of a file.
    fn trusting(&self, sslmode: &str, file: &str) -> String {
        format!("sslmode={sslmode}&sslrootcert={}", text(&self.certificates.file(file)))
    }

    /// Whether each session of the servers is encrypted.
    async fn encrypted_sessions(&self) -> Vec<bool> {
        let sql = self.postgres.connect().await;
        let sessions = "SELECT s.ssl FROM pg_stat_ssl AS s JOIN pg_stat_activity AS a USING (pid)
            WHERE a.application_name = 'pgmq-grpc' AND a.client_addr IS NOT NULL";
        sql.query(sessions, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn expect_served(&self, flags: &[&str]) {
        let server = Server::start(flags).await;
        let mut client = Client::connect(&server).await;
        health::serving(&client).await;
        client.create("orders").await;
        client.send("orders", "{}").await;
        let sessions = self.encrypted_sessions().await;
        assert!(
            !sessions.is_empty() && sessions.iter().all(|encrypted| *encrypted),
            "{flags:?} {sessions:?}"
        );
    }

    async fn expect_refused(&self, flags: &[&str], cause: &str) {
        let server = Server::start(flags).await;
        let mut client = Client::connect(&server).await;
        health::not_serving(&client).await;
        let refused = client.queue.list_queues(ListQueuesRequest::default()).await.unwrap_err();
        Refusal::expect(&refused, Code::Unavailable, "DATABASE_UNAVAILABLE");
        let log = server.log();
        assert!(log.contains(cause), "{flags:?}\n{log}");
        assert!(!log.contains(&self.password), "{log}");
    }
}

#[tokio::test]
async fn certificates_are_verified_as_far_as_sslmode_says() {
    let Some(secured) = Secured::start().await else { return };

    // The first one also installs pgmq, over a connection that is verified as strictly.
    for (host, parameters) in [
        ("localhost", secured.trusting("verify-full", "ca.pem")),
        ("127.0.0.1", secured.trusting("verify-ca", "ca.pem")),
        ("127.0.0.1", secured.trusting("require", "ca.pem")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", String::new()),
    ] {
        secured.expect_served(&["--database-url", &secured.url(host, &parameters)]).await;
    }
    let ca_file = secured.certificates.file("ca.pem");
    let url = secured.url("localhost", "");
    secured.expect_served(&["--database-url", &url, "--database-ca-file", text(&ca_file)]).await;

    for (host, parameters, cause) in [
        ("127.0.0.1", secured.trusting("verify-full", "ca.pem"), "not valid for name"),
        ("localhost", secured.trusting("verify-full", "other.pem"), "UnknownIssuer"),
        ("localhost", secured.trusting("verify-ca", "other.pem"), "UnknownIssuer"),
        ("localhost", secured.trusting("require", "other.pem"), "UnknownIssuer"),
        ("localhost", "sslmode=verify-full".to_owned(), "UnknownIssuer"),
        ("localhost", "sslmode=disable".to_owned(), "no pg_hba.conf entry"),
    ] {
        secured.expect_refused(&["--database-url", &secured.url(host, &parameters)], cause).await;
    }
    let url = secured.url("127.0.0.1", "");
    let flags = ["--database-url", url.as_str(), "--database-ca-file", text(&ca_file)];
    secured.expect_refused(&flags, "not valid for name").await;
}

#[tokio::test]
async fn a_missing_file_of_authorities_is_a_problem_of_the_configuration() {
    let url = "postgres://localhost/app?sslmode=verify-full&sslrootcert=/nowhere/ca.pem";
    let (status, told) = Server::fail_to_start(&["--database-url", url]).await;
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(told.contains("/nowhere/ca.pem"), "{told}");
}

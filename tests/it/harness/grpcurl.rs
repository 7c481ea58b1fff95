//! grpcurl, which calls by reflection what it knows nothing of.

use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;

use super::{Server, skip};

/// The program, where it is installed.
pub(crate) struct Grpcurl {
    program: PathBuf,
    address: String,
}

impl Grpcurl {
    /// Looks on the PATH and in `target/tools/bin`; says aloud that a test is skipped if it is nowhere.
    pub(crate) fn find(server: &Server) -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "tests have no configuration but the environment")]
        let path = std::env::var_os("PATH").unwrap_or_default();
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
        let mut places = std::env::split_paths(&path).chain([tools]).map(|place| place.join("grpcurl"));
        let Some(program) = places.find(|program| program.is_file()) else {
            skip("grpcurl", "it is neither on the PATH nor in target/tools/bin");
            return None;
        };
        Some(Self { program, address: server.address.clone() })
    }

    /// Runs it over plain text, with data to send if there are any, and what to call or show.
    pub(crate) async fn run(&self, data: Option<&str>, what: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("-plaintext");
        if let Some(data) = data {
            command.args(["-d", data]);
        }
        command.arg(&self.address).args(what).kill_on_drop(true).output().await.expect("grpcurl")
    }

    /// What it prints, if all is well.
    pub(crate) async fn print(&self, what: &[&str]) -> String {
        printed(self.run(None, what).await)
    }

    /// The answer of a method, if all is well.
    pub(crate) async fn call(&self, method: &str, data: &str) -> serde_json::Value {
        let text = printed(self.run(Some(data), &[&format!("pgmq.v1.{method}")]).await);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The answers of a streaming method, if all is well.
    pub(crate) async fn stream(&self, method: &str, data: &str) -> Vec<serde_json::Value> {
        let text = printed(self.run(Some(data), &[&format!("pgmq.v1.{method}")]).await);
        let answers = serde_json::Deserializer::from_str(&text).into_iter();
        answers.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn printed(output: Output) -> String {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    text.into_owned()
}

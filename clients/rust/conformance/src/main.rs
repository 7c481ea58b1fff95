//! Runs the cases of `clients/conformance/cases` through the client, against the server at `PGMQ_GRPC_TARGET`.

mod case;
mod compare;
mod convert;
mod streams;
mod words;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pgmq_grpc_client::Client;

use crate::case::Case;
use crate::words::Runner;

const LONGEST: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/cases");
    let directory = std::env::var("CONFORMANCE_CASES").map_or(directory, Into::into);
    let only = std::env::var("CONFORMANCE_ONLY").unwrap_or_default();
    let cases = case::read(&directory)?;
    let client = Client::builder().name("conformance rust").connect(None)?;
    let run: u16 = rand::random();
    let (mut passed, mut failed, mut results) = (0, 0, String::new());
    for (number, case) in cases.iter().enumerate().filter(|(_, case)| case.name.contains(&only)) {
        let case = case.under_names_of_its_own(&format!("r{run:04x}_{number}_"));
        let word = match outcome(&client, &case).await {
            Ok(()) => {
                passed += 1;
                "pass"
            }
            Err(why) => {
                failed += 1;
                println!("FAILED {}: {why}", case.name);
                "fail"
            }
        };
        results.push_str(&format!("{word}\t{}\n", case.name));
    }
    if let Ok(file) = std::env::var("CONFORMANCE_RESULTS") {
        std::fs::write(file, results)?;
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one case, and removes its queues in any case.
async fn outcome(client: &Client, case: &Case) -> Result<(), String> {
    let mut runner = Runner::new(client.clone());
    let outcome = match tokio::time::timeout(LONGEST, runner.case(case)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("it lasted longer than {} seconds", LONGEST.as_secs())),
    };
    drop(runner);
    for queue in case.queues.keys().chain(&case.names) {
        // A case may have dropped it already, and some names are none of queues.
        let _ = client.drop_queue(queue).await;
    }
    outcome
}

//! Every function of pgmq is reached by a call, or is internal for a reason: docs/pgmq-functions.md says which.

use std::collections::{BTreeMap, BTreeSet};

use pgmq_grpc::proto::DESCRIPTORS;
use prost::Message;
use prost_types::FileDescriptorSet;

use crate::harness::{Test, is_old_pgmq};

const TABLE: &str = include_str!("../../docs/pgmq-functions.md");

/// Rows for functions that only older versions have say so with this word.
const OLDER: &str = "only before";

/// The table's rows: a function with the types of its arguments, and what is said of it.
fn rows() -> BTreeMap<&'static str, &'static str> {
    let mut rows = BTreeMap::new();
    for line in TABLE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [function, said] = cells[..] else { panic!("not two cells: {line}") };
        let twice = rows.insert(function.trim_matches('`'), said);
        assert_eq!(twice, None, "{function} stands in the table twice");
    }
    rows
}

/// The words in backticks.
fn quoted(said: &str) -> impl Iterator<Item = &str> {
    said.split('`').skip(1).step_by(2)
}

/// Every RPC as `Service.Method`.
fn rpcs() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors");
    let services = set.file.iter().filter(|file| file.package() == "pgmq.v1").flat_map(|file| &file.service);
    services
        .flat_map(|service| {
            service.method.iter().map(|method| format!("{}.{}", service.name(), method.name()))
        })
        .collect()
}

#[tokio::test]
async fn every_function_of_the_installed_pgmq_stands_in_the_table() {
    let test = Test::start().await;
    let installed = test
        .sql
        .query(
            "SELECT p.proname || '(' || oidvectortypes(p.proargtypes) || ')' FROM pg_proc AS p
             WHERE p.pronamespace = 'pgmq'::regnamespace ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    let installed: BTreeSet<String> = installed.iter().map(|row| row.get(0)).collect();
    assert!(installed.len() > 60, "pgmq has so few functions: {installed:?}");
    let rows = rows();
    let missing: Vec<_> = installed.iter().filter(|function| !rows.contains_key(function.as_str())).collect();
    assert!(missing.is_empty(), "not in docs/pgmq-functions.md: {missing:#?}");
    if !is_old_pgmq() {
        let gone: Vec<_> = rows
            .iter()
            .filter(|(function, said)| !installed.contains(**function) && !said.contains(OLDER))
            .collect();
        assert!(gone.is_empty(), "in docs/pgmq-functions.md but not in pgmq: {gone:#?}");
    }
}

#[test]
fn every_function_is_reached_by_a_call_that_exists_or_is_internal_for_a_reason() {
    let rpcs = rpcs();
    for (function, said) in rows() {
        if let Some(reason) = said.strip_prefix("internal: ") {
            assert!(reason.len() > 10, "{function} gives no reason");
            continue;
        }
        assert!(quoted(said).next().is_some(), "{function} names no call");
        for call in quoted(said) {
            assert!(rpcs.contains(call), "{function} names {call}, which does not exist");
        }
    }
}

#[test]
fn every_call_reaches_a_function_or_is_named_as_one_of_our_own() {
    let ours = TABLE.split("## Calls without a function").nth(1).expect("a section of our own calls");
    let named: BTreeSet<&str> =
        rows().into_values().chain([ours]).flat_map(|said| quoted(said).collect::<Vec<_>>()).collect();
    let unnamed: Vec<_> = rpcs().into_iter().filter(|rpc| !named.contains(rpc.as_str())).collect();
    assert!(unnamed.is_empty(), "not in docs/pgmq-functions.md: {unnamed:#?}");
}

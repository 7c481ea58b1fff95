//! Topics: patterns and routing keys by pgmq's rules, and keys that lead nowhere.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::validate_name_request::Name;
use pgmq_grpc::proto::v1::*;
use tonic::Code;

use super::{Case, check, contents, good_message, good_send, refused, transact};
use crate::harness::wire::{Call, call};
use crate::harness::{Refusal, Test};

/// What neither a routing key nor a pattern may be.
fn bad_texts() -> Vec<String> {
    let texts = [
        ".a", "a.", "a..b", ".", "..", "a b", "a/b", "a,b", "ü", "日本", "a\0", "a\n", "a'b", "a\"b", "a;b",
        "a$b", "a%", "a\\b", "(a)", "a|b", "a+", "a?", "[a]", "^a",
    ];
    texts.map(str::to_owned).into_iter().chain(["k".repeat(256)]).collect()
}

fn with_key(routing_key: &str) -> Vec<(Call, &'static str)> {
    let key = || routing_key.to_owned();
    let send = || SendTopicRequest { routing_key: key(), message: "{}".to_owned(), ..Default::default() };
    let batch =
        SendTopicBatchRequest { routing_key: key(), messages: vec![good_message()], ..Default::default() };
    vec![
        (call(TestRoutingRequest { routing_key: key() }), "routing_key"),
        (call(send()), "routing_key"),
        (call(batch), "routing_key"),
        (call(ValidateNameRequest { name: Some(Name::RoutingKey(key())) }), "routing_key"),
        (
            call(transact([Operation::Send(good_send()), Operation::SendTopic(send())])),
            "operations[1].send_topic.routing_key",
        ),
    ]
}

fn with_pattern(pattern: &str) -> Vec<(Call, &'static str)> {
    let (pattern, queue) = (|| pattern.to_owned(), || "orders".to_owned());
    vec![
        (call(BindTopicRequest { pattern: pattern(), queue: queue() }), "pattern"),
        (call(UnbindTopicRequest { pattern: pattern(), queue: queue() }), "pattern"),
        (call(ValidateNameRequest { name: Some(Name::Pattern(pattern())) }), "pattern"),
    ]
}

fn all(calls: Vec<(Call, &'static str)>, reason: &'static str) -> Vec<Case> {
    calls.into_iter().map(|(call, field)| refused(call, reason, field)).collect()
}

#[tokio::test]
async fn a_bad_routing_key_is_refused_by_every_rpc() {
    let test = Test::with_queue("orders").await;
    check(&test, all(with_key(""), "MISSING_FIELD")).await;
    for key in bad_texts().into_iter().chain(["*", "#", "logs.*", "logs.#"].map(str::to_owned)) {
        check(&test, all(with_key(&key), "INVALID_ROUTING_KEY")).await;
    }
}

#[tokio::test]
async fn a_bad_pattern_is_refused_by_every_rpc() {
    let test = Test::with_queue("orders").await;
    check(&test, all(with_pattern(""), "MISSING_FIELD")).await;
    let adjacent = ["**", "##", "*#", "#*", "a.**", "a.#*.b"].map(str::to_owned);
    for pattern in bad_texts().into_iter().chain(adjacent) {
        check(&test, all(with_pattern(&pattern), "INVALID_PATTERN")).await;
    }
}

#[tokio::test]
async fn what_is_accepted_here_pgmq_accepts_too() {
    let test = Test::with_queue("orders").await;
    for key in ["a", "A-1_b", "logs.error", "-", "_._", &"k".repeat(255)] {
        for (call, _) in with_key(key) {
            call.make(&test.client.channel).await.unwrap_or_else(|status| panic!("{key}: {status:?}"));
        }
    }
    for pattern in ["*", "#", "a*b", "*.*", "#.a.#", "lo#", "a.*.#", &"p".repeat(255)] {
        for (call, _) in with_pattern(pattern) {
            call.make(&test.client.channel).await.unwrap_or_else(|status| panic!("{pattern}: {status:?}"));
        }
    }
}

#[tokio::test]
async fn a_key_that_leads_nowhere_is_an_error_where_a_match_is_required() {
    let test = Test::with_queue("orders").await;
    let key = || "nowhere.at.all".to_owned();
    let send = || SendTopicRequest {
        routing_key: key(),
        message: "{}".to_owned(),
        require_match: true,
        ..Default::default()
    };
    let batch =
        SendTopicBatchRequest { routing_key: key(), messages: vec![good_message()], require_match: true };
    let transaction = transact([Operation::Send(good_send()), Operation::SendTopic(send())]);
    for call in [call(send()), call(batch), call(transaction)] {
        let before = contents(&test).await;
        let status = call.make(&test.client.channel).await.unwrap_err();
        let refusal = Refusal::expect(&status, Code::FailedPrecondition, "NO_ROUTE");
        assert_eq!(refusal.metadata["routing_key"], key());
        assert_eq!(contents(&test).await, before, "{}", call.text);
    }
}

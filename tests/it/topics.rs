//! Topics: bindings, what matches, and sends by routing key.

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::transact_result::Result as Done;
use pgmq_grpc::proto::v1::{
    BindTopicRequest, DropQueueRequest, ListTopicBindingsRequest, OutgoingMessage, SendTopicBatchRequest,
    SendTopicRequest, TestRoutingRequest, TopicBinding, TopicCopy, TransactOperation, TransactRequest,
    UnbindTopicRequest, outgoing_message, send_topic_request,
};
use tonic::{Code, Status};

use crate::harness::client::outgoing;
use crate::harness::{Refusal, Test, moment_in, seconds};
use crate::transaction::Open;

/// A test with queues, and patterns bound to them.
async fn bound(queues: &[&str], bindings: &[(&str, &str)]) -> Test {
    let mut test = Test::start().await;
    for queue in queues {
        test.client.create(queue).await;
    }
    for (pattern, queue) in bindings {
        assert!(bind(&mut test, pattern, queue).await.expect("a binding"));
    }
    test
}

async fn bind(test: &mut Test, pattern: &str, queue: &str) -> Result<bool, Status> {
    let request = BindTopicRequest { pattern: pattern.to_owned(), queue: queue.to_owned() };
    Ok(test.client.topic.bind_topic(request).await?.into_inner().created)
}

async fn unbind(test: &mut Test, pattern: &str, queue: &str) -> Result<bool, Status> {
    let request = UnbindTopicRequest { pattern: pattern.to_owned(), queue: queue.to_owned() };
    Ok(test.client.topic.unbind_topic(request).await?.into_inner().removed)
}

async fn bindings(test: &mut Test, queue: &str) -> Vec<TopicBinding> {
    let request = ListTopicBindingsRequest { queue: queue.to_owned(), ..Default::default() };
    test.client.topic.list_topic_bindings(request).await.expect("bindings").into_inner().bindings
}

fn pairs(bindings: &[TopicBinding]) -> Vec<(&str, &str)> {
    bindings.iter().map(|binding| (binding.pattern.as_str(), binding.queue.as_str())).collect()
}

async fn matches(test: &mut Test, routing_key: &str) -> Vec<TopicBinding> {
    let request = TestRoutingRequest { routing_key: routing_key.to_owned() };
    test.client.topic.test_routing(request).await.expect("a test").into_inner().matches
}

fn to(routing_key: &str) -> SendTopicRequest {
    SendTopicRequest { routing_key: routing_key.to_owned(), message: "1".to_owned(), ..Default::default() }
}

async fn send(test: &mut Test, request: SendTopicRequest) -> Result<Vec<TopicCopy>, Status> {
    Ok(test.client.topic.send_topic(request).await?.into_inner().copies)
}

fn copy(queue: &str, msg_id: i64, message_index: i32) -> TopicCopy {
    TopicCopy { queue: queue.to_owned(), msg_id, message_index, deduplicated: false }
}

#[tokio::test]
async fn a_binding_is_made_once_and_removed_once() {
    let mut test = bound(&["orders"], &[]).await;
    assert!(bind(&mut test, "orders.#", "orders").await.unwrap());
    assert!(!bind(&mut test, "orders.#", "orders").await.unwrap());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.topic_bindings").await, 1);
    assert!(unbind(&mut test, "orders.#", "orders").await.unwrap());
    assert!(!unbind(&mut test, "orders.#", "orders").await.unwrap());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.topic_bindings").await, 0);
}

#[tokio::test]
async fn a_missing_queue_cannot_be_bound_but_unbound_and_listed() {
    let mut test = Test::start().await;
    let status = bind(&mut test, "a", "nowhere").await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal.metadata["queue"], "nowhere");
    assert!(!unbind(&mut test, "a", "nowhere").await.unwrap());
    assert_eq!(bindings(&mut test, "nowhere").await, []);
}

#[tokio::test]
async fn unbinding_another_pattern_or_queue_leaves_the_rest() {
    let mut test = bound(&["a", "b"], &[("x.*", "a"), ("x.*", "b"), ("y", "a")]).await;
    assert!(!unbind(&mut test, "y", "b").await.unwrap());
    assert!(!unbind(&mut test, "X.*", "a").await.unwrap());
    assert!(unbind(&mut test, "x.*", "a").await.unwrap());
    assert_eq!(pairs(&bindings(&mut test, "").await), [("x.*", "b"), ("y", "a")]);
}

#[tokio::test]
async fn bindings_are_listed_by_pattern_and_queue_in_pages() {
    let all = [("#", "b"), ("A", "a"), ("a", "a"), ("a", "b"), ("a.*", "a")];
    let mut test = bound(&["a", "b"], &[all[3], all[0], all[4], all[2], all[1]]).await;
    assert_eq!(pairs(&bindings(&mut test, "").await), all);
    assert_eq!(pairs(&bindings(&mut test, "b").await), [("#", "b"), ("a", "b")]);

    let (mut seen, mut page_token) = (Vec::new(), String::new());
    for expected in [2, 2, 1] {
        let request = ListTopicBindingsRequest { page_size: 2, page_token, ..Default::default() };
        let page = test.client.topic.list_topic_bindings(request).await.unwrap().into_inner();
        assert_eq!(page.bindings.len(), expected);
        seen.extend(page.bindings);
        page_token = page.next_page_token;
    }
    assert_eq!(page_token, "");
    assert_eq!(pairs(&seen), all);

    let request = ListTopicBindingsRequest { page_size: 1, queue: "b".into(), ..Default::default() };
    let page = test.client.topic.list_topic_bindings(request).await.unwrap().into_inner();
    let request = ListTopicBindingsRequest {
        page_token: page.next_page_token,
        queue: "a".into(),
        ..Default::default()
    };
    let status = test.client.topic.list_topic_bindings(request).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_PAGE_TOKEN", "page_token");
}

#[tokio::test]
async fn a_listed_binding_has_its_moment_and_its_regular_expression() {
    let mut test = bound(&["orders"], &[("orders.*.#", "orders")]).await;
    let listed = bindings(&mut test, "").await.remove(0);
    let stored: String = test.value("SELECT compiled_regex FROM pgmq.topic_bindings").await;
    assert_eq!(listed.compiled_regex, stored);
    let bound_at: i64 =
        test.value("SELECT floor(extract(epoch FROM bound_at))::bigint FROM pgmq.topic_bindings").await;
    assert_eq!(listed.bound_at.unwrap().seconds, bound_at);
    assert_eq!(matches(&mut test, "orders.a.b").await, [listed]);
}

#[tokio::test]
async fn dropping_a_queue_removes_its_bindings() {
    let mut test = bound(&["a", "b"], &[("#", "a"), ("#", "b")]).await;
    test.client.queue.drop_queue(DropQueueRequest { queue: "a".into() }).await.unwrap();
    assert_eq!(pairs(&bindings(&mut test, "").await), [("#", "b")]);
    assert_eq!(send(&mut test, to("k")).await.unwrap(), [copy("b", 1, 0)]);
}

#[tokio::test]
async fn wildcards_match_as_documented() {
    let mut test = bound(&["q"], &[]).await;
    for (pattern, matching, other) in [
        (
            "logs.*",
            vec!["logs.error", "logs.a-b_2"],
            vec!["logs.db.error", "logs", "Logs.error", "xlogs.error"],
        ),
        ("logs.#", vec!["logs.error", "logs.db.error"], vec!["logs", "log.error"]),
        ("lo#", vec!["logs", "logs.error", "lo"], vec!["alo", "l"]),
        ("#", vec!["a", "a.b.c"], vec![]),
        ("*", vec!["a", "a-b"], vec!["a.b"]),
        ("*.error", vec!["db.error"], vec!["error", "a.db.error"]),
        ("#.error", vec!["db.error", "a.db.error"], vec!["error", "db.errors"]),
        ("a*c", vec!["abc", "abbc"], vec!["ac", "a.c"]),
        ("a.*.#", vec!["a.b.c", "a.b.c.d"], vec!["a.b", "a"]),
        ("a-b_c", vec!["a-b_c"], vec!["a-bxc", "a_b_c"]),
        ("a.b", vec!["a.b"], vec!["axb", "a.b.c", "a"]),
    ] {
        bind(&mut test, pattern, "q").await.unwrap();
        for key in matching {
            assert_eq!(pairs(&matches(&mut test, key).await), [(pattern, "q")], "{pattern} {key}");
            assert_eq!(send(&mut test, to(key)).await.unwrap().len(), 1, "{pattern} {key}");
        }
        for key in other {
            assert_eq!(matches(&mut test, key).await, [], "{pattern} {key}");
            assert_eq!(send(&mut test, to(key)).await.unwrap(), [], "{pattern} {key}");
        }
        unbind(&mut test, pattern, "q").await.unwrap();
    }
}

#[tokio::test]
async fn a_queue_gets_one_copy_however_many_patterns_match() {
    let mut test =
        bound(&["a", "b", "c"], &[("k.#", "b"), ("#", "b"), ("k.x", "b"), ("k.*", "a"), ("z", "c")]).await;
    let matching = matches(&mut test, "k.x").await;
    assert_eq!(pairs(&matching), [("#", "b"), ("k.#", "b"), ("k.*", "a"), ("k.x", "b")]);
    assert_eq!(send(&mut test, to("k.x")).await.unwrap(), [copy("a", 1, 0), copy("b", 1, 0)]);
    for (queue, count) in [("a", 1), ("b", 1), ("c", 0)] {
        assert_eq!(test.value::<i64>(&format!("SELECT count(*) FROM pgmq.q_{queue}")).await, count);
    }
}

#[tokio::test]
async fn a_copy_has_body_headers_group_and_schedule_of_its_message() {
    let mut test = bound(&["a", "b"], &[("#", "a"), ("#", "b")]).await;
    let request = SendTopicRequest {
        message: r#"{"n":9223372036854775807}"#.into(),
        headers: r#"{"h":1}"#.into(),
        group: "g".into(),
        schedule: Some(send_topic_request::Schedule::Delay(seconds(1.5).unwrap())),
        ..to("k")
    };
    send(&mut test, request).await.unwrap();
    let request = SendTopicRequest {
        schedule: Some(send_topic_request::Schedule::VisibleAt(moment_in(3_600))),
        ..to("k")
    };
    send(&mut test, request).await.unwrap();
    for queue in ["a", "b"] {
        let row = test
            .value::<String>(&format!(
                "SELECT message::text || ' ' || headers::text FROM pgmq.q_{queue} WHERE msg_id = 1"
            ))
            .await;
        assert_eq!(row, r#"{"n": 9223372036854775807} {"h": 1, "x-pgmq-group": "g"}"#);
        let delays = format!(
            "SELECT bool_and(CASE msg_id WHEN 1 THEN vt - enqueued_at BETWEEN interval '1.5 s' AND interval '5 s'
             ELSE vt - enqueued_at BETWEEN interval '3590 s' AND interval '3610 s' END) FROM pgmq.q_{queue}"
        );
        assert!(test.value::<bool>(&delays).await);
    }
}

#[tokio::test]
async fn copies_of_a_batch_name_their_queue_and_their_message() {
    let mut test = bound(&["a", "b"], &[("#", "a"), ("k", "b")]).await;
    test.client.send("b", "0").await;
    let request = SendTopicBatchRequest {
        routing_key: "k".into(),
        messages: ["1", "2", "3"].map(outgoing).to_vec(),
        require_match: true,
    };
    let copies = test.client.topic.send_topic_batch(request).await.unwrap().into_inner().copies;
    let expected = [
        copy("a", 1, 0),
        copy("a", 2, 1),
        copy("a", 3, 2),
        copy("b", 2, 0),
        copy("b", 3, 1),
        copy("b", 4, 2),
    ];
    assert_eq!(copies, expected);
    for copy in copies {
        let body = format!("SELECT message::text FROM pgmq.q_{} WHERE msg_id = {}", copy.queue, copy.msg_id);
        assert_eq!(test.value::<String>(&body).await, (copy.message_index + 1).to_string());
    }
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_own_schedule_and_headers() {
    let mut test = bound(&["a"], &[("#", "a")]).await;
    let messages = vec![
        outgoing("1"),
        OutgoingMessage {
            schedule: Some(outgoing_message::Schedule::Delay(seconds(100.0).unwrap())),
            ..outgoing("2")
        },
        OutgoingMessage {
            schedule: Some(outgoing_message::Schedule::VisibleAt(moment_in(200))),
            headers: r#"{"h":1}"#.into(),
            ..outgoing("3")
        },
        OutgoingMessage { group: "g".into(), ..outgoing("4") },
    ];
    let request = SendTopicBatchRequest { routing_key: "k".into(), messages, require_match: false };
    let copies = test.client.topic.send_topic_batch(request).await.unwrap().into_inner().copies;
    assert_eq!(copies.len(), 4);
    let rows = "SELECT string_agg(message::text || ':' || coalesce(headers::text, '-') || ':'
      || round(extract(epoch FROM vt - enqueued_at) / 100), ' ' ORDER BY msg_id) FROM pgmq.q_a";
    let expected = r#"1:-:0 2:-:1 3:{"h": 1}:2 4:{"x-pgmq-group": "g"}:0"#;
    assert_eq!(test.value::<String>(rows).await, expected);
}

#[tokio::test]
async fn a_batch_to_topics_is_sent_as_a_whole_or_not_at_all() {
    let mut test = bound(&["a", "b"], &[("#", "a"), ("#", "b")]).await;
    test.run("ALTER TABLE pgmq.q_b ADD CHECK (message <> '2'::jsonb)").await;
    let messages = ["1", "2"].map(outgoing).to_vec();
    let request = SendTopicBatchRequest { routing_key: "k".into(), messages, require_match: false };
    let refused = test.client.topic.send_topic_batch(request).await.unwrap_err();
    Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    for queue in ["a", "b"] {
        assert_eq!(test.value::<i64>(&format!("SELECT count(*) FROM pgmq.q_{queue}")).await, 0);
    }
}

#[tokio::test]
async fn a_copy_that_a_trigger_swallows_takes_back_the_others() {
    for queues in [&["a", "b"][..], &["b"]] {
        let bindings: Vec<(&str, &str)> = queues.iter().map(|&queue| ("#", queue)).collect();
        let mut test = bound(&["a", "b"], &bindings).await;
        test.run(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF NEW.message = '2' THEN RETURN NULL; END IF; RETURN NEW; END $$;
             CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_b FOR EACH ROW EXECUTE FUNCTION swallow()",
        )
        .await;
        let one =
            |message: &str| SendTopicRequest { message: message.to_owned(), require_match: true, ..to("k") };
        let transact = |request| TransactRequest {
            operations: vec![TransactOperation { operation: Some(Operation::SendTopic(request)) }],
            ..Default::default()
        };
        let batch = SendTopicBatchRequest {
            routing_key: "k".into(),
            messages: ["1", "2"].map(outgoing).to_vec(),
            require_match: true,
        };
        let mut open = Open::begin(&test.client).await;
        open.give(Command::SendTopic(one("2"))).await;
        for refused in [
            test.client.topic.send_topic(one("2")).await.unwrap_err(),
            test.client.topic.send_topic_batch(batch).await.unwrap_err(),
            test.client.queue.transact(transact(one("2"))).await.unwrap_err(),
            open.failure().await,
        ] {
            let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
            assert_eq!(refusal.metadata.get("sqlstate"), None, "{refusal:?}");
        }
        let stored = "SELECT (SELECT count(*) FROM pgmq.q_a) + (SELECT count(*) FROM pgmq.q_b)";
        assert_eq!(test.value::<i64>(stored).await, 0);
        assert_eq!(send(&mut test, one("1")).await.unwrap().len(), queues.len());
        let sent = test.client.queue.transact(transact(one("1"))).await.unwrap().into_inner();
        assert!(
            matches!(&sent.results[0].result, Some(Done::SendTopic(sent)) if sent.copies.len() == queues.len())
        );
    }
}

#[tokio::test]
async fn a_thousand_messages_go_to_topics_in_order() {
    let mut test = bound(&["a"], &[("#", "a")]).await;
    let messages = (0..1_000).map(|n: i32| outgoing(&n.to_string())).collect();
    let request = SendTopicBatchRequest { routing_key: "k".into(), messages, require_match: false };
    let copies = test.client.topic.send_topic_batch(request).await.unwrap().into_inner().copies;
    assert_eq!(copies, (0..1_000).map(|n| copy("a", i64::from(n) + 1, n)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_without_a_match_is_dropped_unless_a_match_is_required() {
    let mut test = bound(&["a"], &[("orders.*", "a")]).await;
    assert_eq!(send(&mut test, to("nobody")).await.unwrap(), []);
    let messages = vec![outgoing("1")];
    let batch = SendTopicBatchRequest { routing_key: "nobody".into(), messages, require_match: false };
    assert_eq!(test.client.topic.send_topic_batch(batch.clone()).await.unwrap().into_inner().copies, []);

    let alone = send(&mut test, SendTopicRequest { require_match: true, ..to("nobody") }).await.unwrap_err();
    let batch = SendTopicBatchRequest { require_match: true, ..batch };
    let batch = test.client.topic.send_topic_batch(batch).await.unwrap_err();
    for status in [alone, batch] {
        let refusal = Refusal::expect(&status, Code::FailedPrecondition, "NO_ROUTE");
        assert_eq!(refusal.metadata["routing_key"], "nobody");
    }
    let matched = send(&mut test, SendTopicRequest { require_match: true, ..to("orders.eu") }).await;
    assert_eq!(matched.unwrap(), [copy("a", 1, 0)]);
}

#[tokio::test]
async fn bad_patterns_and_keys_are_refused_by_every_call() {
    let mut test = bound(&["a"], &[("#", "a")]).await;
    let too_long = "a".repeat(256);
    for bad in ["", ".a", "a.", "a..b", "a b", "ü", "a!", "\0", &too_long] {
        let (reason, key_reason) = match bad {
            "" => ("MISSING_FIELD", "MISSING_FIELD"),
            _ => ("INVALID_PATTERN", "INVALID_ROUTING_KEY"),
        };
        Refusal::expect_invalid(&bind(&mut test, bad, "a").await.unwrap_err(), reason, "pattern");
        Refusal::expect_invalid(&unbind(&mut test, bad, "a").await.unwrap_err(), reason, "pattern");
        let tested = TestRoutingRequest { routing_key: bad.to_owned() };
        let tested = test.client.topic.test_routing(tested).await.unwrap_err();
        Refusal::expect_invalid(&tested, key_reason, "routing_key");
        Refusal::expect_invalid(&send(&mut test, to(bad)).await.unwrap_err(), key_reason, "routing_key");
    }
    for bad in ["**", "##", "*#", "a.#*"] {
        Refusal::expect_invalid(&bind(&mut test, bad, "a").await.unwrap_err(), "INVALID_PATTERN", "pattern");
    }
    for wild in ["a.*", "#"] {
        Refusal::expect_invalid(
            &send(&mut test, to(wild)).await.unwrap_err(),
            "INVALID_ROUTING_KEY",
            "routing_key",
        );
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.topic_bindings").await, 1);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_a").await, 0);
}

#[tokio::test]
async fn every_pattern_that_we_accept_is_one_for_pgmq_too() {
    let mut test = bound(&["a"], &[]).await;
    let longest = "a".repeat(255);
    for pattern in ["a", "#", "*", "a.#.b.*", "-", "_", "a#b", "*.*", &longest] {
        assert!(bind(&mut test, pattern, "a").await.unwrap(), "{pattern}");
    }
    for key in ["a", "-", "_", "0", "A.b-c_d", &longest] {
        send(&mut test, to(key)).await.unwrap();
    }
}

#[tokio::test]
async fn bindings_of_plain_sql_and_of_odd_names_count_alike() {
    let mut test = Test::start().await;
    test.run("SELECT pgmq.create('Two Words'); SELECT pgmq.bind_topic('x.*', 'Two Words')").await;
    assert!(!bind(&mut test, "x.*", "Two Words").await.unwrap());
    let status = bind(&mut test, "x.*", "two words").await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(send(&mut test, to("x.y")).await.unwrap(), [copy("Two Words", 1, 0)]);
    assert_eq!(test.client.read_one("Two Words").await.message, "1");
    assert_eq!(bindings(&mut test, "two words").await, []);
    assert!(unbind(&mut test, "x.*", "Two Words").await.unwrap());
}

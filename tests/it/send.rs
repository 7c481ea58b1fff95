//! Send and SendBatch: what arrives in the queue's table, and when it becomes visible.

use pgmq_grpc::proto::v1::{
    OutgoingMessage, SendBatchRequest, SendRequest, outgoing_message, send_request::Schedule,
};
use tonic::Code;

use crate::harness::client::outgoing;
use crate::harness::{Refusal, Test, moment_in, seconds};

fn to_orders(message: &str) -> SendRequest {
    SendRequest { queue: "orders".into(), message: message.into(), ..Default::default() }
}

async fn send(test: &mut Test, request: SendRequest) -> i64 {
    test.client.queue.send(request).await.expect("a send").into_inner().msg_id
}

async fn send_batch(test: &mut Test, messages: Vec<OutgoingMessage>) -> Vec<i64> {
    let request = SendBatchRequest { queue: "orders".into(), messages };
    let sent = test.client.queue.send_batch(request).await.expect("a batch").into_inner();
    sent.results.iter().map(|result| result.msg_id).collect()
}

/// In how many seconds a message becomes visible.
async fn visible_in(test: &Test, msg_id: i64) -> f64 {
    test.value(&format!(
        "SELECT extract(epoch FROM vt - enqueued_at)::float8 FROM pgmq.q_orders WHERE msg_id = {msg_id}"
    ))
    .await
}

#[tokio::test]
async fn a_message_is_stored_as_pgmq_itself_would_store_it() {
    let mut test = Test::with_queue("orders").await;
    let request = SendRequest { headers: r#"{"trace":"t1"}"#.into(), ..to_orders(r#"{"total":12.50}"#) };
    let ours = send(&mut test, request).await;
    let theirs = test
        .value::<i64>(r#"SELECT pgmq.send('orders', '{"total":12.50}'::jsonb, '{"trace":"t1"}'::jsonb)"#)
        .await;
    assert_eq!((ours, theirs), (1, 2));
    let same = "SELECT count(DISTINCT (message::text, headers::text, read_ct, vt <= clock_timestamp(), vt >= enqueued_at))
                FROM pgmq.q_orders";
    assert_eq!(test.value::<i64>(same).await, 1);
    let last_read = "SELECT count(last_read_at) FROM pgmq.q_orders";
    assert_eq!(test.value::<i64>(last_read).await, 0);
}

#[tokio::test]
async fn a_body_goes_through_jsonb_and_keeps_every_digit() {
    let mut test = Test::with_queue("orders").await;
    for (sent, stored) in [
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("18446744073709551616000000000000000001", "18446744073709551616000000000000000001"),
        ("0.1000", "0.1000"),
        ("1e3", "1000"),
        ("3.141592653589793238462643383279502884197", "3.141592653589793238462643383279502884197"),
        ("null", "null"),
        ("false", "false"),
        ("\"\"", "\"\""),
        ("[]", "[]"),
        (r#" { "b" : 1 , "a" : 2 , "b" : 3 } "#, r#"{"a": 2, "b": 3}"#),
        ("\"日本語 😀 ü\"", "\"日本語 😀 ü\""),
        (r#""\ud83d\ude00\u00fc\n\t\"\\\/""#, "\"😀ü\\n\\t\\\"\\\\/\""),
        ("\"\u{7f}\u{2028}\u{feff}\"", "\"\u{7f}\u{2028}\u{feff}\""),
    ] {
        let msg_id = send(&mut test, to_orders(sent)).await;
        let kept: String =
            test.value(&format!("SELECT message::text FROM pgmq.q_orders WHERE msg_id = {msg_id}")).await;
        assert_eq!(kept, stored);
        let read = test.client.read_one("orders").await;
        assert_eq!((read.msg_id, read.message.as_str()), (msg_id, stored));
    }
}

#[tokio::test]
async fn headers_go_through_jsonb_and_none_are_sql_null() {
    let mut test = Test::with_queue("orders").await;
    for (sent, stored) in [
        ("", None),
        ("{}", Some("{}")),
        (r#"{"n":9223372036854775807,"ü":"日本"}"#, Some(r#"{"n": 9223372036854775807, "ü": "日本"}"#)),
    ] {
        let msg_id = send(&mut test, SendRequest { headers: sent.into(), ..to_orders("1") }).await;
        let kept: Option<String> =
            test.value(&format!("SELECT headers::text FROM pgmq.q_orders WHERE msg_id = {msg_id}")).await;
        assert_eq!(kept.as_deref(), stored);
        assert_eq!(test.client.read_one("orders").await.headers, stored.unwrap_or_default());
    }
}

#[tokio::test]
async fn a_group_is_a_header() {
    let mut test = Test::with_queue("orders").await;
    for (group, headers, stored) in [
        ("g1", "", r#"{"x-pgmq-group": "g1"}"#),
        ("g1", r#"{"a":1}"#, r#"{"a": 1, "x-pgmq-group": "g1"}"#),
        ("g1", r#"{"x-pgmq-group":"g1"}"#, r#"{"x-pgmq-group": "g1"}"#),
        ("\"ü\"\\", "{}", r#"{"x-pgmq-group": "\"ü\"\\"}"#),
    ] {
        let request = SendRequest { group: group.into(), headers: headers.into(), ..to_orders("1") };
        let msg_id = send(&mut test, request).await;
        let kept: String =
            test.value(&format!("SELECT headers::text FROM pgmq.q_orders WHERE msg_id = {msg_id}")).await;
        assert_eq!(kept, stored);
    }
    let other = r#"{"x-pgmq-group":"g2"}"#.to_owned();
    let request = SendRequest { group: "g1".into(), headers: other, ..to_orders("1") };
    let status = test.client.queue.send(request).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_GROUP", "group");
}

#[tokio::test]
async fn a_delay_counts_from_the_sending_in_whole_milliseconds() {
    let mut test = Test::with_queue("orders").await;
    for (delay, least, most) in [
        (0.0, 0.0, 0.0),
        (0.000_1, 0.001, 0.001),
        (1.5, 1.5, 1.5),
        (31_536_000.0, 31_536_000.0, 31_536_000.0),
    ] {
        let schedule = Some(Schedule::Delay(seconds(delay).unwrap()));
        let msg_id = send(&mut test, SendRequest { schedule, ..to_orders("1") }).await;
        let visible_in = visible_in(&test, msg_id).await;
        assert!((least..most + 5.0).contains(&visible_in), "{delay}: {visible_in}");
    }
    let read = test.client.read("orders", 1_000).await;
    assert_eq!(read.first().map(|message| message.msg_id), Some(1));
    assert!(read.iter().all(|message| message.msg_id <= 2));
}

#[tokio::test]
async fn a_moment_is_kept_as_given_and_a_past_one_means_at_once() {
    let mut test = Test::with_queue("orders").await;
    let moment = prost_types::Timestamp { nanos: 123_456_000, ..moment_in(3_600) };
    let schedule = Some(Schedule::VisibleAt(moment));
    let later = send(&mut test, SendRequest { schedule, ..to_orders("1") }).await;
    let kept: i64 = test
        .value(&format!(
            "SELECT (extract(epoch FROM vt) * 1000000)::bigint FROM pgmq.q_orders WHERE msg_id = {later}"
        ))
        .await;
    assert_eq!(kept, moment.seconds * 1_000_000 + 123_456);
    let schedule = Some(Schedule::VisibleAt(moment_in(-3_600)));
    let past = send(&mut test, SendRequest { schedule, ..to_orders("2") }).await;
    let read = test.client.read("orders", 10).await;
    assert_eq!(read.iter().map(|message| message.msg_id).collect::<Vec<_>>(), [past]);
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_own_headers_group_and_schedule() {
    let mut test = Test::with_queue("orders").await;
    let messages = vec![
        outgoing("1"),
        OutgoingMessage { headers: r#"{"a":1}"#.into(), ..outgoing("2") },
        OutgoingMessage { group: "g".into(), ..outgoing("3") },
        OutgoingMessage {
            schedule: Some(outgoing_message::Schedule::Delay(seconds(100.0).unwrap())),
            ..outgoing("4")
        },
        OutgoingMessage {
            schedule: Some(outgoing_message::Schedule::VisibleAt(moment_in(200))),
            ..outgoing("5")
        },
    ];
    assert_eq!(send_batch(&mut test, messages).await, [1, 2, 3, 4, 5]);
    let rows = "SELECT string_agg(message::text || ':' || coalesce(headers::text, '-'), ' ' ORDER BY msg_id) FROM pgmq.q_orders";
    assert_eq!(test.value::<String>(rows).await, r#"1:- 2:{"a": 1} 3:{"x-pgmq-group": "g"} 4:- 5:-"#);
    for (msg_id, expected) in [(1, 0.0), (2, 0.0), (3, 0.0), (4, 100.0), (5, 200.0)] {
        let visible_in = visible_in(&test, msg_id).await;
        assert!((visible_in - expected).abs() < 10.0, "{msg_id}: {visible_in}");
    }
}

#[tokio::test]
async fn a_batch_of_a_thousand_keeps_its_order() {
    let mut test = Test::with_queue("orders").await;
    let bodies: Vec<String> = (0..1_000).map(|n| (n * 7 % 1_000).to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let ids = test.client.send_all("orders", &bodies).await;
    assert_eq!(ids, (1..=1_000).collect::<Vec<i64>>());
    let read = test.client.read("orders", 1_000).await;
    assert_eq!(read.iter().map(|message| message.message.as_str()).collect::<Vec<_>>(), bodies);
}

#[tokio::test]
async fn a_batch_is_stored_as_a_whole_or_not_at_all() {
    let mut test = Test::with_queue("orders").await;
    test.run("ALTER TABLE pgmq.q_orders ADD CHECK (message <> '3'::jsonb)").await;
    let messages = ["1", "2", "3"].map(outgoing).to_vec();
    let request = SendBatchRequest { queue: "orders".into(), messages };
    let status = test.client.queue.send_batch(request).await.unwrap_err();
    Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);

    let messages = vec![outgoing("1"), outgoing("{"), outgoing("2")];
    let request = SendBatchRequest { queue: "orders".into(), messages };
    let status = test.client.queue.send_batch(request).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_JSON", "messages[1].message");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_later_send_has_a_higher_id_whoever_sends() {
    let mut test = Test::with_queue("orders").await;
    let mut last = 0;
    for round in 0..10 {
        let sent = match round % 3 {
            0 => test.client.send("orders", "1").await,
            1 => *test.client.send_all("orders", &["1", "2"]).await.last().unwrap(),
            _ => test.value("SELECT pgmq.send('orders', '1'::jsonb)").await,
        };
        assert!(sent > last);
        last = sent;
    }
}

#[tokio::test]
async fn sends_of_many_callers_each_get_their_own_id() {
    let test = Test::with_queue("orders").await;
    let calls = (0..100).map(|n: i32| {
        let mut client = test.client.clone();
        async move { (client.send("orders", &n.to_string()).await, n) }
    });
    for (msg_id, n) in futures_util::future::join_all(calls).await {
        let body = format!("SELECT message::text FROM pgmq.q_orders WHERE msg_id = {msg_id}");
        assert_eq!(test.value::<String>(&body).await, n.to_string());
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 100);
}

#[tokio::test]
async fn a_sent_message_is_committed_when_the_reply_comes() {
    let mut test = Test::with_queue("orders").await;
    for n in 1..=20 {
        test.client.send("orders", "1").await;
        assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, n);
    }
}

#[tokio::test]
async fn a_send_to_a_missing_queue_is_refused_alone() {
    let mut test = Test::with_queue("orders").await;
    let status = test
        .client
        .queue
        .send(SendRequest { queue: "nowhere".into(), message: "1".into(), ..Default::default() })
        .await
        .unwrap_err();
    let refusal = Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal.metadata["queue"], "nowhere");
    let request = SendBatchRequest { queue: "nowhere".into(), messages: vec![outgoing("1")] };
    let status = test.client.queue.send_batch(request).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(test.client.send("orders", "1").await, 1);
}

#[tokio::test]
async fn a_batch_of_which_a_trigger_swallows_a_part_is_not_stored_at_all() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN IF NEW.message = '2' THEN RETURN NULL; END IF; RETURN NEW; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    .await;

    let messages = vec![outgoing("1"), outgoing("2"), outgoing("3")];
    let request = SendBatchRequest { queue: "orders".to_owned(), messages };
    let status = test.client.queue.send_batch(request).await.unwrap_err();

    Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

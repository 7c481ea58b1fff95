//! What the log says, in which form, and what it never shows.

use pgmq_grpc::proto::v1::*;
use tonic::{Code, Request};

use crate::harness::{Client, Refusal, Server, Test, TestDatabase, eventually, health, seconds};

/// A text that only payloads and headers have.
const MARKER: &str = "zanzibar4711";

#[tokio::test]
async fn no_level_shows_a_payload_a_header_or_a_password() {
    for level in ["debug", "trace", "trace,tokio_postgres=trace,h2=trace,sqlx=trace"] {
        let database = TestDatabase::create().await;
        let mut server = Server::start_on(&database, &["--log", level]).await;
        server.expect_errors();
        let client = Client::connect(&server).await;
        let sql = database.connect().await;
        let mut test = Test { database, server, client, sql };
        health::serving(&test.client).await;

        every_call(&mut test).await;
        failing_calls(&mut test).await;

        let password = test.database.url.split_once('@').unwrap().0.rsplit_once(':').unwrap().1.to_owned();
        let lines = test.server.log_lines();
        assert!(lines.iter().any(|line| line.contains("REFUSED_BY_DATABASE")), "{}", test.server.log());
        for line in lines {
            let record: serde_json::Value = serde_json::from_str(&line).expect(&line);
            for field in ["timestamp", "level", "message", "target"] {
                assert!(record[field].is_string(), "{field}: {line}");
            }
            for secret in [MARKER, &password] {
                assert!(!line.contains(secret), "{level}: {line}");
            }
        }
    }
}

fn body() -> String {
    format!(r#"{{"{MARKER}": "{MARKER}"}}"#)
}

fn outgoing() -> OutgoingMessage {
    OutgoingMessage { message: body(), headers: body(), ..Default::default() }
}

fn send() -> SendRequest {
    SendRequest { queue: queue(), message: body(), headers: body(), ..Default::default() }
}

fn queue() -> String {
    "orders".to_owned()
}

/// Every call of the contract once, with the marker wherever a payload or a header can be. Whether it succeeds on this
/// pgmq does not matter here.
async fn every_call(test: &mut Test) {
    let Client { queue: calls, topic, admin, .. } = &mut test.client;
    let _ = admin.install_pgmq(InstallPgmqRequest {}).await;
    let _ = calls.create_queue(CreateQueueRequest { queue: queue(), ..Default::default() }).await;
    let _ = calls.get_queue(GetQueueRequest { queue: queue() }).await;
    let _ = calls.list_queues(ListQueuesRequest::default()).await;
    let _ = calls.get_server_info(GetServerInfoRequest {}).await;
    let name = Some(validate_name_request::Name::Queue(queue()));
    let _ = calls.validate_name(ValidateNameRequest { name }).await;
    let fifo = Some(create_fifo_index_request::Target::Queue(queue()));
    let _ = admin.create_fifo_index(CreateFifoIndexRequest { target: fifo }).await;
    let enable = EnableNotificationsRequest { queue: queue(), throttle_interval: seconds(1.0) };
    let _ = admin.enable_notifications(enable).await;
    let update = UpdateNotificationsRequest { queue: queue(), throttle_interval: seconds(2.0) };
    let _ = admin.update_notifications(update).await;
    let _ = admin.list_notifications(ListNotificationsRequest::default()).await;
    let policy = Some(QueuePolicy { default_wait: seconds(0.0), ..Default::default() });
    let _ = admin.update_queue(UpdateQueueRequest { queue: queue(), policy, update_mask: None }).await;
    let _ = admin.list_clients(ListClientsRequest::default()).await;
    let _ = admin.disable_notifications(DisableNotificationsRequest { queue: queue() }).await;
    let convert = ConvertArchivePartitionedRequest { queue: queue(), ..Default::default() };
    let _ = admin.convert_archive_partitioned(convert).await;

    for _ in 0..6 {
        calls.send(send()).await.unwrap();
    }
    calls.send_batch(SendBatchRequest { queue: queue(), messages: vec![outgoing(); 3] }).await.unwrap();
    let bind = BindTopicRequest { pattern: "a.#".to_owned(), queue: queue() };
    let _ = topic.bind_topic(bind).await;
    let _ = topic.list_topic_bindings(ListTopicBindingsRequest::default()).await;
    let _ = topic.test_routing(TestRoutingRequest { routing_key: "a.b".to_owned() }).await;
    let by_topic = SendTopicRequest {
        routing_key: "a.b".to_owned(),
        message: body(),
        headers: body(),
        ..Default::default()
    };
    let _ = topic.send_topic(by_topic).await;
    let messages = vec![outgoing(); 2];
    let batch = SendTopicBatchRequest { routing_key: "a.b".to_owned(), messages, ..Default::default() };
    let _ = topic.send_topic_batch(batch).await;
    let unbind = UnbindTopicRequest { pattern: "a.#".to_owned(), queue: queue() };
    let _ = topic.unbind_topic(unbind).await;

    let read = ReadBatchRequest {
        queue: queue(),
        max_messages: 4,
        conditional: body(),
        visibility_timeout: seconds(600.0),
        ..Default::default()
    };
    let read = calls.read_batch(read).await.unwrap().into_inner().messages;
    assert!(read.iter().all(|message| message.message.contains(MARKER)));
    let mut receipts = read.into_iter().map(|message| vec![message.receipt]);
    let mut receipt = || receipts.next().unwrap();
    calls.delete(DeleteRequest { queue: queue(), receipts: receipt(), ..Default::default() }).await.unwrap();
    calls
        .archive(ArchiveRequest { queue: queue(), receipts: receipt(), ..Default::default() })
        .await
        .unwrap();
    calls
        .release(ReleaseRequest { queue: queue(), receipts: receipt(), ..Default::default() })
        .await
        .unwrap();
    let set = SetVisibilityTimeoutRequest {
        queue: queue(),
        receipts: receipt(),
        visibility: seconds(5.0).map(set_visibility_timeout_request::Visibility::VisibilityTimeout),
        return_messages: true,
        ..Default::default()
    };
    calls.set_visibility_timeout(set).await.unwrap();
    let operation = Some(transact_operation::Operation::Send(send()));
    let operations = vec![TransactOperation { operation }];
    calls.transact(TransactRequest { operations, ..Default::default() }).await.unwrap();
    admin.list_messages(ListMessagesRequest { queue: queue(), ..Default::default() }).await.unwrap();
    let archived = ListArchivedMessagesRequest { queue: queue(), ..Default::default() };
    let archived = admin.list_archived_messages(archived).await;
    // pgmq may have been told above to begin another archive.
    assert!(archived.unwrap().into_inner().messages.len() <= 1);
    let replay = ReplayArchivedMessagesRequest { queue: queue(), ..Default::default() };
    admin.replay_archived_messages(replay).await.unwrap();
    let delete = DeleteArchivedMessagesRequest { queue: queue(), ..Default::default() };
    admin.delete_archived_messages(delete).await.unwrap();
    let redrive = RedriveMessagesRequest { dead_letter_queue: queue(), ..Default::default() };
    admin.redrive_messages(redrive).await.unwrap();
    let stream = ReadRequest { queue: queue(), max_messages: 1, ..Default::default() };
    let mut stream = calls.read(stream).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    calls.pop(PopRequest { queue: queue(), ..Default::default() }).await.unwrap();
    let metrics = GetQueueMetricsRequest { queue: queue(), include_archive: true };
    calls.get_queue_metrics(metrics).await.unwrap();
    calls.list_queue_metrics(ListQueueMetricsRequest::default()).await.unwrap();
    calls.purge_queue(PurgeQueueRequest { queue: queue() }).await.unwrap();
    calls.drop_queue(DropQueueRequest { queue: queue() }).await.unwrap();
}

/// Calls that fail here, in the transport and in the database, each with the marker in it.
async fn failing_calls(test: &mut Test) {
    test.client.create("orders").await;
    let broken = SendRequest { message: format!("{{{MARKER}"), ..send() };
    let refused = test.client.queue.send(broken).await.unwrap_err();
    Refusal::expect_invalid(&refused, "INVALID_JSON", "message");

    let mut request = Request::new(send());
    request.metadata_mut().insert("x-request-id", "two words".parse().unwrap());
    request.metadata_mut().insert("authorization", MARKER.parse().unwrap());
    test.client.queue.send(request).await.unwrap();

    // Postgres tells the whole row in the detail of its error.
    test.run(&format!("ALTER TABLE pgmq.q_orders ADD CHECK (message->>'{MARKER}' IS NULL) NOT VALID")).await;
    assert!(test.client.queue.send(send()).await.is_err());
    test.run(
        "CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           RAISE NOTICE 'got %', NEW.message; RAISE EXCEPTION 'no room for %', NEW.message; END $$;
         CREATE TRIGGER complain BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION complain()",
    )
    .await;
    let batch = SendBatchRequest { queue: queue(), messages: vec![outgoing()] };
    assert!(test.client.queue.send_batch(batch).await.is_err());
    let operation = Some(transact_operation::Operation::Send(send()));
    let transact =
        TransactRequest { operations: vec![TransactOperation { operation }], ..Default::default() };
    assert!(test.client.queue.transact(transact).await.is_err());
}

#[tokio::test]
async fn the_line_of_a_failed_call_has_its_request_id() {
    let mut test = Test::with_queue("orders").await;
    test.run("ALTER TABLE pgmq.q_orders ADD CHECK (false) NOT VALID").await;

    let mut request = Request::new(send());
    request.metadata_mut().insert("x-request-id", "order-4711".parse().unwrap());
    let refused = test.client.queue.send(request).await.unwrap_err();

    let refusal = Refusal::expect(&refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert!(!refusal.message.contains("check"), "{}", refusal.message);
    assert_eq!(refused.metadata().get("x-request-id").unwrap(), "order-4711");
    let named = async || test.server.log_lines().into_iter().find(|line| line.contains("order-4711"));
    let failed = eventually("a line with the id", named).await;
    let lines = test.server.log_lines();
    assert_eq!(lines.iter().filter(|line| line.contains("order-4711")).count(), 1, "{lines:?}");
    let failed: serde_json::Value = serde_json::from_str(&failed).unwrap();
    assert_eq!(failed["level"], "WARN");
    assert_eq!(failed["message"], "call refused");
    assert_eq!(failed["reason"], "REFUSED_BY_DATABASE");
    assert!(failed["cause"].as_str().unwrap().contains("23514"), "{failed}");
}

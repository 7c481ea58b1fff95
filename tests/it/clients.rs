//! `ListClients`: who calls, through which server, and what becomes of servers that are gone.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    Client as Listed, ClientRole, ConsumeRequest, ConsumeStart, DeleteRequest, GetServerInfoRequest,
    ListClientsRequest, OpenTransactionRequest, ProduceRequest, ReadBatchRequest, ReadRequest, SendRequest,
    SendTopicRequest, TransactOperation, TransactRequest, WatchRequest, consume_request,
};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::harness::client::outgoing;
use crate::harness::wire::call;
use crate::harness::{Client, Gate, Refusal, Server, Test, TestDatabase, eventually};
use crate::transaction::begin;

/// A request of a caller that names itself.
fn named<T>(name: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("pgmq-client", name.parse().expect("an ASCII value"));
    request
}

fn send_request(queue: &str) -> SendRequest {
    SendRequest { queue: queue.to_owned(), message: "{}".to_owned(), ..Default::default() }
}

fn read_request(queue: &str) -> ReadBatchRequest {
    ReadBatchRequest { queue: queue.to_owned(), ..Default::default() }
}

async fn list(client: &Client, request: ListClientsRequest) -> Vec<Listed> {
    let listed = client.clone().admin.list_clients(request).await.expect("a list").into_inner();
    assert_eq!(listed.next_page_token, "");
    listed.clients
}

async fn all(client: &Client) -> Vec<Listed> {
    list(client, ListClientsRequest::default()).await
}

/// Names, roles and queues.
fn who(clients: &[Listed]) -> Vec<(&str, ClientRole, &str)> {
    clients.iter().map(|client| (client.name.as_str(), client.role(), client.queue.as_str())).collect()
}

fn names(clients: &[Listed]) -> Vec<&str> {
    clients.iter().map(|client| client.name.as_str()).collect()
}

async fn replica(client: &Client) -> String {
    let info = client.clone().queue.get_server_info(GetServerInfoRequest {}).await;
    info.expect("the server's info").into_inner().replica
}

#[tokio::test]
async fn callers_are_listed_with_what_they_do_and_to_which_queue() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("bills").await;
    assert_eq!(all(&test.client).await, []);
    test.client.queue.send(named("shop", send_request("orders"))).await.unwrap();
    test.client.queue.send(named("shop", send_request("orders"))).await.unwrap();
    test.client.queue.read_batch(named("worker", read_request("orders"))).await.unwrap();
    test.client.queue.read_batch(read_request("bills")).await.unwrap();
    let operations = [
        Operation::Send(send_request("bills")),
        Operation::Delete(DeleteRequest {
            queue: "orders".to_owned(),
            msg_ids: vec![1],
            ..Default::default()
        }),
    ];
    let operations = operations.map(|operation| TransactOperation { operation: Some(operation) }).to_vec();
    let transact = TransactRequest { operations, ..Default::default() };
    test.client.queue.transact(named("mover", transact)).await.unwrap();
    let topic = SendTopicRequest {
        routing_key: "logs.error".to_owned(),
        message: "{}".to_owned(),
        ..Default::default()
    };
    test.client.topic.send_topic(named("logger", topic)).await.unwrap();
    // It is there although it was refused.
    test.client.queue.send(named("lost", send_request("nowhere"))).await.unwrap_err();
    let clients = all(&test.client).await;
    use ClientRole::{Consumer, Producer};
    assert_eq!(
        who(&clients),
        [
            ("", Consumer, "bills"),
            ("logger", Producer, ""),
            ("lost", Producer, "nowhere"),
            ("mover", Consumer, "orders"),
            ("mover", Producer, "bills"),
            ("shop", Producer, "orders"),
            ("worker", Consumer, "orders"),
        ]
    );
    let replica = replica(&test.client).await;
    for client in clients {
        assert!(client.address.starts_with("127.0.0.1:"), "{client:?}");
        assert_eq!((client.replica.as_str(), client.in_flight), (replica.as_str(), 0));
        let (since, last_seen) = (client.since.expect("a moment"), client.last_seen.expect("a moment"));
        assert!((since.seconds, since.nanos) <= (last_seen.seconds, last_seen.nanos), "{since} {last_seen}");
    }
}

#[tokio::test]
async fn commands_of_a_transaction_count_as_calls() {
    let test = Test::with_queue("orders").await;
    let commands = [begin(), crate::transaction::send("orders", "{}"), crate::transaction::read("orders")];
    let (sender, receiver) = tokio::sync::mpsc::channel(10);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let opened = test.client.transaction.clone().open_transaction(named("shell", stream)).await;
    let mut replies = opened.expect("a stream").into_inner();
    for command in commands {
        sender.send(OpenTransactionRequest { command: Some(command) }).await.unwrap();
        replies.message().await.unwrap().expect("a reply");
    }
    let clients = all(&test.client).await;
    use ClientRole::{Consumer, Producer};
    assert_eq!(who(&clients), [("shell", Consumer, "orders"), ("shell", Producer, "orders")]);
}

#[tokio::test]
async fn a_command_of_a_transaction_for_another_queue_than_its_metadata_names_is_refused() {
    let test = Test::with_queue("orders").await;
    let (sender, receiver) = tokio::sync::mpsc::channel(10);
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    request.metadata_mut().insert("pgmq-queue", MetadataValue::from_static("orders"));
    let opened = test.client.transaction.clone().open_transaction(request).await;
    let mut replies = opened.expect("a stream").into_inner();
    for command in [begin(), crate::transaction::send("orders", "{}")] {
        sender.send(OpenTransactionRequest { command: Some(command) }).await.unwrap();
        replies.message().await.unwrap().expect("a reply");
    }
    let command = Some(crate::transaction::send("bills", "{}"));
    sender.send(OpenTransactionRequest { command }).await.unwrap();
    let status = replies.message().await.expect_err("a refusal");
    Refusal::expect_invalid(&status, "METADATA_MISMATCH", "send.queue");
}

#[tokio::test]
async fn streams_are_listed_as_long_as_they_are_open_with_what_they_hold() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 5]).await;
    let read = ReadRequest { queue: "orders".to_owned(), max_in_flight: 3, ..Default::default() };
    let mut reading = test.client.queue.read(named("reader", read)).await.unwrap().into_inner();
    let start = ConsumeStart { queue: "orders".to_owned(), max_in_flight: 2, ..Default::default() };
    let command = Some(consume_request::Command::Start(start));
    // The stream stays as long as more commands can come.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(ConsumeRequest { request_id: 0, command }).await.unwrap();
    let commands = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let consuming = test.client.queue.consume(named("consumer", commands)).await.unwrap();
    let mut consuming = consuming.into_inner();
    let in_flight = async |client: &Client| {
        let clients = all(client).await;
        let streams = clients.iter().filter(|client| !client.name.is_empty());
        streams.map(|client| (client.name.clone(), client.in_flight)).collect::<Vec<_>>()
    };
    let expected = [("consumer".to_owned(), 2), ("reader".to_owned(), 3)];
    let held = async {
        eventually("full windows", async || (in_flight(&test.client).await == expected).then_some(())).await;
    };
    let follow = async {
        loop {
            tokio::select! {
                reply = reading.message() => drop(reply.unwrap().expect("a reply")),
                reply = consuming.message() => drop(reply.unwrap().expect("a reply")),
            }
        }
    };
    tokio::select! {
        () = held => {}
        () = follow => {}
    }
    drop((reading, consuming, sender));
    let none = expected.map(|(name, _)| (name, 0));
    eventually("the end of the streams", async || (in_flight(&test.client).await == none).then_some(()))
        .await;
}

#[tokio::test]
async fn what_a_produce_stream_waits_for_is_in_flight() {
    let test = Test::with_queue("orders").await;
    let gate = Gate::close(&test, "orders", "INSERT").await;
    let frame = ProduceRequest {
        queue: "orders".to_owned(),
        first_sequence: 1,
        messages: vec![outgoing("{}"), outgoing("{}")],
    };
    let frames = tokio_stream::StreamExt::chain(tokio_stream::iter([frame]), tokio_stream::pending());
    let mut answers =
        test.client.queue.clone().produce(named("shop", frames)).await.expect("a stream").into_inner();
    assert!(answers.message().await.unwrap().expect("a notice").started.is_some());
    gate.arrival(&test, "send").await;
    let clients = all(&test.client).await;
    assert_eq!(who(&clients), [("shop", ClientRole::Producer, "orders")]);
    assert_eq!(clients[0].in_flight, 2);
    gate.open(&test).await;
    assert_eq!(answers.message().await.unwrap().expect("an answer").msg_ids.len(), 2);
    assert_eq!(all(&test.client).await[0].in_flight, 0);
}

#[tokio::test]
async fn who_only_watches_or_administers_is_not_listed() {
    let mut test = Test::with_queue("orders").await;
    let watch = WatchRequest { queues: vec!["orders".to_owned()], ..Default::default() };
    let mut events = test.client.queue.watch(named("watcher", watch)).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().expect("a notice").started.is_some());
    assert_eq!(all(&test.client).await, []);
}

#[tokio::test]
async fn a_list_comes_in_pages_and_filtered() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("bills").await;
    for name in ["web-2", "web-1", "Web", "job", "web-10"] {
        test.client.queue.send(named(name, send_request("orders"))).await.unwrap();
        test.client.queue.read_batch(named(name, read_request("bills"))).await.unwrap();
    }
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListClientsRequest { page_size: 3, page_token, ..Default::default() };
        let page = test.client.admin.list_clients(request).await.unwrap().into_inner();
        pages.push(names(&page.clients).into_iter().map(str::to_owned).collect::<Vec<_>>());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
    let expected = ["Web", "job", "web-1", "web-10", "web-2"];
    assert_eq!(pages.concat(), expected.map(|name| [name; 2]).concat());
    let of = |queue: &str, prefix: &str| ListClientsRequest {
        queue: queue.to_owned(),
        prefix: prefix.to_owned(),
        ..Default::default()
    };
    assert_eq!(names(&list(&test.client, of("bills", "")).await), expected);
    assert_eq!(names(&list(&test.client, of("orders", "web-1")).await), ["web-1", "web-10"]);
    assert_eq!(list(&test.client, of("Orders", "")).await, []);
    let first = of("bills", "");
    let token = ListClientsRequest { page_size: 1, ..first.clone() };
    let token = test.client.admin.list_clients(token).await.unwrap().into_inner().next_page_token;
    let other = ListClientsRequest { page_token: token, ..of("orders", "") };
    let status = test.client.admin.list_clients(other).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_PAGE_TOKEN", "page_token");
}

/// Two servers on one database, and how each sees the other's clients.
async fn pair() -> (Test, Server, Client) {
    let test = Test::with_queue("orders").await;
    let other = Server::start_on(&test.database, &[]).await;
    let elsewhere = Client::connect(&other).await;
    for client in [&test.client, &elsewhere] {
        eventually("the schema", async || {
            let info = client.clone().queue.get_server_info(GetServerInfoRequest {}).await.unwrap();
            info.into_inner().capabilities.contains(&"clients".to_owned()).then_some(())
        })
        .await;
    }
    (test, other, elsewhere)
}

async fn until_listed(client: &Client, expected: &[&str]) -> Vec<Listed> {
    eventually(&format!("a list of {expected:?}"), async || {
        let clients = all(client).await;
        (names(&clients) == expected).then_some(clients)
    })
    .await
}

#[tokio::test]
async fn the_clients_of_all_servers_are_listed_by_each() {
    let (mut test, other, mut elsewhere) = pair().await;
    // Whatever characters a name has, the table and the order take it.
    let odd = "b 'quoted' \"twice\" \\ % ; -- ~";
    test.client.queue.send(named("a", send_request("orders"))).await.unwrap();
    elsewhere.queue.send(named(odd, send_request("orders"))).await.unwrap();
    test.client.queue.send(named("c", send_request("orders"))).await.unwrap();
    let read = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    let mut stream = elsewhere.queue.read(named("d", read)).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().expect("a notice").started.is_some());
    let (here, there) = (replica(&test.client).await, replica(&elsewhere).await);
    assert_ne!(here, there);
    for client in [&test.client, &elsewhere] {
        let clients = until_listed(client, &["a", odd, "c", "d"]).await;
        let replicas: Vec<&str> = clients.iter().map(|client| client.replica.as_str()).collect();
        assert_eq!(replicas, [&here, &there, &here, &there]);
        // Pages go across the servers, too.
        let request = ListClientsRequest { page_size: 2, ..Default::default() };
        let page = client.clone().admin.list_clients(request.clone()).await.unwrap().into_inner();
        assert_eq!(names(&page.clients), ["a", odd]);
        let request = ListClientsRequest { page_token: page.next_page_token, ..request };
        let page = client.clone().admin.list_clients(request).await.unwrap().into_inner();
        assert_eq!((names(&page.clients), page.next_page_token.as_str()), (vec!["c", "d"], ""));
    }
    let in_flight = async || all(&test.client).await.pop().expect("the stream").in_flight;
    eventually("the stream's messages", async || (in_flight().await == 3).then_some(())).await;
    // A server that ends in order takes its clients with it.
    drop(stream);
    other.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(other.exit().await.0.success());
    assert_eq!(names(&all(&test.client).await), ["a", "c"]);
}

#[tokio::test]
async fn a_dead_server_is_forgotten_after_a_while() {
    let (mut test, other, mut elsewhere) = pair().await;
    elsewhere.queue.send(named("there", send_request("orders"))).await.unwrap();
    until_listed(&test.client, &["there"]).await;
    let dead = replica(&elsewhere).await;
    drop(other);
    assert_eq!(names(&all(&test.client).await), ["there"]);
    // As if a minute had passed.
    test.run("UPDATE pgmq_grpc.replica SET seen_at = seen_at - interval '1 minute'").await;
    assert_eq!(all(&test.client).await, []);
    // Somebody else's next note clears it away.
    test.client.queue.send(named("here", send_request("orders"))).await.unwrap();
    eventually("the dead server's removal", async || {
        let rows = "SELECT count(*) FROM pgmq_grpc.client WHERE replica = $1";
        let left: i64 = test.sql.query_one(rows, &[&dead]).await.unwrap().get(0);
        (left == 0).then_some(())
    })
    .await;
    let replicas = "SELECT string_agg(replica, ', ') FROM pgmq_grpc.replica";
    assert_eq!(test.value::<String>(replicas).await, replica(&test.client).await);
}

#[tokio::test]
async fn a_server_that_was_thought_dead_comes_back_with_all_its_clients() {
    let (test, _other, mut elsewhere) = pair().await;
    for name in ["one", "two"] {
        elsewhere.queue.send(named(name, send_request("orders"))).await.unwrap();
    }
    until_listed(&test.client, &["one", "two"]).await;
    // As after a crash of the database, which empties the tables.
    test.run("TRUNCATE pgmq_grpc.replica, pgmq_grpc.client").await;
    assert_eq!(all(&test.client).await, []);
    until_listed(&test.client, &["one", "two"]).await;
}

#[tokio::test]
async fn nothing_is_written_while_the_same_callers_call() {
    let (mut test, _other, elsewhere) = pair().await;
    test.client.queue.send(named("steady", send_request("orders"))).await.unwrap();
    until_listed(&elsewhere, &["steady"]).await;
    let written = "SELECT concat_ws(' ', c.ctid, c.xmin) FROM pgmq_grpc.client AS c";
    let (row, alive) = (test.value::<String>(written).await, "SELECT seen_at::text FROM pgmq_grpc.replica");
    let before = test.value::<String>(alive).await;
    eventually("a sign of life", async || {
        test.client.queue.send(named("steady", send_request("orders"))).await.unwrap();
        (test.value::<String>(alive).await != before).then_some(())
    })
    .await;
    assert_eq!(test.value::<String>(written).await, row);
}

#[tokio::test]
async fn without_the_schema_a_server_lists_its_own_clients() {
    let database = TestDatabase::create().await;
    let server = Server::start_on(&database, &["--no-install"]).await;
    let mut client = Client::connect(&server).await;
    client.queue.send(named("shop", send_request("nowhere"))).await.unwrap_err();
    assert_eq!(names(&all(&client).await), ["shop"]);
    let info = client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert!(!info.capabilities.contains(&"clients".to_owned()), "{:?}", info.capabilities);
}

#[tokio::test]
async fn a_name_that_is_too_long_or_not_ascii_is_refused_by_every_kind_of_call() {
    let mut test = Test::with_queue("orders").await;
    let long = "x".repeat(129);
    let list = call(ListClientsRequest::default());
    for request in [call(send_request("orders")), call(read_request("orders")), list] {
        let status = request.make_with(&test.client.channel, &[("pgmq-client", &long)]).await.unwrap_err();
        let refusal = Refusal::expect_invalid(&status, "INVALID_CLIENT_NAME", "pgmq-client");
        assert_eq!(refusal.metadata["limit"], "128");
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    let bad = |status: Status| Refusal::expect_invalid(&status, "INVALID_CLIENT_NAME", "pgmq-client");
    let read = ReadRequest { queue: "orders".to_owned(), ..Default::default() };
    bad(test.client.queue.read(named(&long, read)).await.map(drop).unwrap_err());
    bad(test.client.queue.consume(named(&long, tokio_stream::pending())).await.map(drop).unwrap_err());
    bad(test.client.queue.produce(named(&long, tokio_stream::pending())).await.map(drop).unwrap_err());
    let transaction = named(&long, tokio_stream::pending());
    bad(test.client.transaction.open_transaction(transaction).await.map(drop).unwrap_err());
    // What no client library sends, the wire can.
    let bytes = crate::harness::wire::frame(false, &prost::Message::encode_to_vec(&send_request("orders")));
    let path = "/pgmq.v1.QueueService/Send";
    for odd in ["a\tb", "über"] {
        let answer =
            crate::harness::wire::post(&test.server, path, &[("pgmq-client", odd)], bytes.clone()).await;
        bad(answer);
    }
    let answer = crate::harness::wire::post(&test.server, path, &[("pgmq-client", "a b")], bytes).await;
    assert_eq!(answer.code(), Code::Ok, "{answer:?}");
}

#[tokio::test]
async fn the_log_names_the_client_of_a_call_that_failed() {
    let database = TestDatabase::create().await;
    let server = Server::start_on(&database, &["--log", "debug"]).await;
    let mut client = Client::connect(&server).await;
    client.queue.send(named("shop-7", send_request("nowhere"))).await.unwrap_err();
    let line = eventually("a line", async || {
        server.log_lines().into_iter().find(|line| line.contains("call refused"))
    })
    .await;
    assert!(line.contains("\"client\":\"shop-7\""), "{line}");
}

#[tokio::test]
async fn filters_that_match_no_client_ever_are_refused() {
    let mut test = Test::start().await;
    let refused = [
        (
            ListClientsRequest { prefix: "ü".to_owned(), ..Default::default() },
            "INVALID_CLIENT_NAME",
            "prefix",
        ),
        (ListClientsRequest { queue: "a;b".to_owned(), ..Default::default() }, "INVALID_QUEUE_NAME", "queue"),
        (ListClientsRequest { page_size: -1, ..Default::default() }, "INVALID_COUNT", "page_size"),
        (
            ListClientsRequest { page_token: "x".to_owned(), ..Default::default() },
            "INVALID_PAGE_TOKEN",
            "page_token",
        ),
    ];
    for (request, reason, field) in refused {
        let status = test.client.admin.list_clients(request).await.unwrap_err();
        Refusal::expect_invalid(&status, reason, field);
    }
}

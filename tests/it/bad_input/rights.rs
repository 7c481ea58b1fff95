//! A server whose role in the database may do little.

use pgmq_grpc::proto::v1::*;
use tonic::Code;

use super::{contents, good_delete, good_send};
use crate::harness::wire::{Call, call};
use crate::harness::{Client, Refusal, Server, Test};

/// A server that connects as a role with these rights, besides the test's own; and the role's password.
async fn server_with(test: &Test, rights: &str) -> (Server, Client) {
    let role = format!("role_of_{}", test.database.name);
    let rights = rights.replace("{role}", &role);
    test.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'opensesame'; {rights}")).await;
    let (scheme, rest) = test.database.url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    let url = format!("{scheme}://{role}:opensesame@{place}");
    let server = Server::start(&["--database-url", &url]).await;
    let client = Client::connect(&server).await;
    (server, client)
}

async fn expect_denied(server: &Server, client: &Client, call: Call) {
    let Err(status) = call.make(&client.channel).await else { panic!("not refused: {}", call.text) };
    let refusal = Refusal::expect(&status, Code::PermissionDenied, "PERMISSION_DENIED");
    for shown in ["orders", "permission denied", "role_of"] {
        assert!(!refusal.message.contains(shown), "{refusal:?}");
    }
    assert!(refusal.metadata.is_empty(), "{refusal:?}");
    assert!(!server.log().contains("opensesame"));
}

#[tokio::test]
async fn a_role_that_may_only_look_is_denied_what_writes() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "1").await;
    let rights = "GRANT USAGE ON SCHEMA pgmq TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA pgmq TO {role}";
    let (server, client) = server_with(&test, rights).await;
    let queue = || "orders".to_owned();
    let before = contents(&test).await;
    for call in [
        call(good_send()),
        call(good_delete()),
        call(ReadBatchRequest { queue: queue(), ..Default::default() }),
        call(PopRequest { queue: queue(), max_messages: 1 }),
        call(PurgeQueueRequest { queue: queue() }),
        call(DropQueueRequest { queue: queue() }),
        call(CreateQueueRequest { queue: "new".to_owned(), ..Default::default() }),
        call(BindTopicRequest { pattern: "a".to_owned(), queue: queue() }),
        call(EnableNotificationsRequest { queue: queue(), throttle_interval: None }),
    ] {
        expect_denied(&server, &client, call).await;
    }
    call(GetQueueRequest { queue: queue() }).make(&client.channel).await.unwrap();
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn a_role_without_any_right_is_denied_everything() {
    let test = Test::with_queue("orders").await;
    let (server, client) = server_with(&test, "").await;
    for call in [
        call(good_send()),
        call(GetQueueRequest { queue: "orders".to_owned() }),
        call(ListQueuesRequest::default()),
        call(ReadRequest { queue: "orders".to_owned(), ..Default::default() }),
    ] {
        expect_denied(&server, &client, call).await;
    }
}

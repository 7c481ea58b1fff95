//! Streams that open at the same time, as after a restart of the server.

use futures_util::future::join_all;
use pgmq_grpc::proto::v1::ReadRequest;
use tonic::Code;

use super::{Follower, follow};
use crate::consume::{Consumer, start};
use crate::harness::{Refusal, Test};

#[tokio::test]
async fn more_streams_than_may_wait_for_the_database_open_at_once() {
    let mut test = Test::start_with(&["--pool-size", "2", "--max-waiting-calls", "4"]).await;
    test.client.create("orders").await;
    let reads = join_all((0..80).map(|_| Follower::open(&test.client, follow("orders"))));
    let consumers = join_all((0..20).map(|_| Consumer::start_and_tell(&test.client, start("orders"))));
    let (mut reads, consumers) = tokio::join!(reads, consumers);
    // All of them wait for messages.
    drop(consumers);
    test.client.send("orders", "{}").await;
    let messages = reads.iter_mut().map(|stream| Box::pin(stream.message()));
    let (message, _, _) = futures_util::future::select_all(messages).await;
    assert_eq!(message.msg_id, 1);
}

#[tokio::test]
async fn each_stream_that_opens_beside_others_is_told_of_its_own_queue() {
    let test = Test::with_queue("orders").await;
    let open = |queue: &str| {
        let (mut client, request) =
            (test.client.clone(), ReadRequest { queue: queue.to_owned(), ..follow("") });
        async move {
            let opened = client.queue.read(request).await;
            match opened {
                Ok(stream) => stream.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            }
        }
    };
    let names = ["orders", "missing", "absent", "orders"];
    for (name, opened) in
        names.iter().cycle().take(40).zip(join_all((0..40).map(|number| open(names[number % 4]))).await)
    {
        match *name {
            "orders" => opened.expect("a stream"),
            missing => {
                let refusal =
                    Refusal::expect(&opened.expect_err("no queue"), Code::NotFound, "QUEUE_NOT_FOUND");
                assert_eq!(refusal.metadata["queue"], missing);
            }
        }
    }
}

//! Policies, and what they do, where a standby has taken over.

use nix::sys::signal::Signal;
use pgmq_grpc::proto::v1::{GetQueueRequest, Outcome, QueuePolicy};
use tonic::Code;

use super::{patient, start_on};
use crate::dead_letters::{at_most, try_dead_letter};
use crate::harness::{Client, Pair, Refusal, eventually, seconds};
use crate::policies::{create, set};
use crate::read_stream::{Follower, follow};
use crate::settle::{outcomes, release};

/// A policy that hides messages for so long and hands them over so often.
fn hidden_for(timeout: f64, max_receives: i32) -> QueuePolicy {
    QueuePolicy { default_visibility_timeout: seconds(timeout), ..at_most(max_receives) }
}

/// What the first call that works tells of the policy of `orders`.
async fn policy_at_last(client: &Client) -> Option<QueuePolicy> {
    eventually("an answer of the new primary", async || {
        let request = patient(GetQueueRequest { queue: "orders".to_owned() });
        let got = client.clone().queue.get_queue(request).await.ok()?;
        got.into_inner().queue
    })
    .await
    .policy
}

/// For how many seconds a server hides what is read there.
async fn timeout_at(client: &Client) -> i64 {
    let timeout = Follower::open(client, follow("orders")).await.started.visibility_timeout;
    timeout.expect("a timeout").seconds
}

#[tokio::test]
async fn a_policy_that_was_changed_before_holds_at_the_new_primary_and_its_dead_letters_are_there() {
    let Some(mut pair) = Pair::start("policies at a new primary").await else { return };
    let (_server, mut client) = start_on(&pair.url).await;
    let (_other, mut elsewhere) = start_on(&pair.url).await;
    client.create("failed").await;
    create(&mut client, "orders", Some(hidden_for(600.0, 5))).await.unwrap();
    client.send_all("orders", &["1", "2"]).await;
    let held = client.read("orders", 2).await;
    let settled = try_dead_letter(&mut client, "orders", &[&held[0].receipt], "before").await.unwrap();
    assert_eq!(outcomes(&settled), [Outcome::Done]);
    set(&mut client, "orders", hidden_for(45.0, 1)).await;

    pair.primary.crash().await;
    pair.standby.promote().await;

    for client in [&client, &elsewhere] {
        assert_eq!(policy_at_last(client).await, Some(hidden_for(45.0, 1)));
        assert_eq!(timeout_at(client).await, 45);
    }
    let released = release(&mut elsewhere, "orders", &[&held[1].receipt], None).await;
    assert_eq!((outcomes(&released), released[0].vt), (vec![Outcome::Done], None));
    assert_eq!(pair.standby.count("pgmq.q_orders").await, 0);
    assert_eq!(pair.standby.count("pgmq.q_failed").await, 2);
    // Changes are told there as well.
    set(&mut elsewhere, "orders", hidden_for(46.0, 1)).await;
    eventually("the change at the other server", async || (timeout_at(&client).await == 46).then_some(()))
        .await;
}

#[tokio::test]
async fn a_policy_that_the_standby_never_saw_is_forgotten_with_the_old_primary() {
    let Some(mut pair) = Pair::start_asynchronous("policies of an old primary").await else { return };
    let (server, mut client) = start_on(&pair.url).await;
    let (other, elsewhere) = start_on(&pair.url).await;
    client.create("failed").await;
    create(&mut client, "orders", Some(hidden_for(45.0, 5))).await.unwrap();
    let standby = &pair.standby;
    eventually("the policy on the standby", async || {
        (standby.count("pgmq_grpc.queue_policy").await == 1).then_some(())
    })
    .await;
    pair.part().await;
    let lost = QueuePolicy { default_delay: seconds(3_600.0), ..hidden_for(99.0, 1) };
    set(&mut client, "orders", lost.clone()).await;
    create(&mut client, "lost", Some(hidden_for(98.0, 1))).await.unwrap();
    for client in [&client, &elsewhere] {
        eventually("the policy everywhere", async || (timeout_at(client).await == 99).then_some(())).await;
    }

    // So that they cannot look at the policies before these are locked, and one does first.
    for server in [&server, &other] {
        server.signal(Signal::SIGSTOP);
    }
    pair.primary.crash().await;
    pair.standby.promote().await;
    let [holder, observer] = [pair.standby.connect().await.unwrap(), pair.standby.connect().await.unwrap()];
    holder.batch_execute("BEGIN; LOCK TABLE pgmq_grpc.queue_policy").await.unwrap();
    server.signal(Signal::SIGCONT);
    let looking = "SELECT FROM pg_stat_activity WHERE query LIKE '-- pgmq-grpc: policies%' AND wait_event_type = 'Lock' LIMIT 1";
    eventually("a look at the new primary", async || observer.query_opt(looking, &[]).await.unwrap()).await;
    // What it knew of the old one serves nobody.
    if let Ok(stream) = client.queue.read(follow("orders")).await {
        let first = stream.into_inner().message().await;
        first.expect_err("nothing is served before the policies are known");
    }
    holder.batch_execute("COMMIT").await.unwrap();
    other.signal(Signal::SIGCONT);

    for client in [client, elsewhere] {
        let mut client = client;
        assert_eq!(policy_at_last(&client).await, Some(hidden_for(45.0, 5)));
        assert_eq!(timeout_at(&client).await, 45);
        // Neither delayed nor set aside after one hand-over.
        client.send("orders", "{}").await;
        // The stream that told the timeout may have taken it for a moment.
        let held = eventually("the message", async || client.clone().read("orders", 1).await.pop()).await;
        let released = release(&mut client, "orders", &[&held.receipt], None).await;
        assert!(released[0].vt.is_some(), "{released:?}");
        assert_eq!(client.delete("orders", &[&held.receipt]).await, [Outcome::Done]);
        let gone = client.queue.get_queue(GetQueueRequest { queue: "lost".to_owned() }).await.unwrap_err();
        Refusal::expect(&gone, Code::NotFound, "QUEUE_NOT_FOUND");
    }
    assert_eq!(pair.standby.count("pgmq.q_failed").await, 0);
}

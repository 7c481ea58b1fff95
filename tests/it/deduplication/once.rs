//! Many callers at two servers hammer the same keys: each is stored once a window, and nothing that was answered is missing.

use std::collections::{HashMap, HashSet};

use pgmq_grpc::proto::v1::SendBatchRequest;
use tokio::task::JoinSet;

use super::{item, keyed, send};
use crate::harness::{Client, Server, Test};

const KEYS: usize = 40;

/// Sends every key in an order of its own, alone and in batches; gives key, id and whether it was a repeat.
async fn hammer(mut client: Client, seed: usize) -> Vec<(usize, i64, bool)> {
    let mut answers = Vec::new();
    let order = |round: usize| (0..KEYS).map(move |n| (n * 7 + seed * 3 + round * 11) % KEYS);
    for key in order(0) {
        let sent = send(&mut client, keyed("orders", &format!("k{key}"), &key.to_string())).await.unwrap();
        answers.push((key, sent.msg_id, sent.deduplicated));
    }
    for round in 1..4 {
        let keys: Vec<usize> = order(round).take(KEYS / 2).collect();
        let messages = keys.iter().map(|key| item(&format!("k{key}"), &key.to_string())).collect();
        let request = SendBatchRequest { queue: "orders".to_owned(), messages };
        let results = client.queue.send_batch(request).await.unwrap().into_inner().results;
        answers
            .extend(keys.into_iter().zip(results).map(|(key, sent)| (key, sent.msg_id, sent.deduplicated)));
    }
    answers
}

/// Answers of callers at two servers, and the messages that are in the table, by id.
async fn hammered(flags: &[&str]) -> (Vec<(usize, i64, bool)>, HashMap<i64, usize>) {
    let mut test = Test::start_with(flags).await;
    test.client.create("orders").await;
    let other = Server::start_on(&test.database, flags).await;
    let elsewhere = Client::connect(&other).await;
    let mut callers = JoinSet::new();
    for seed in 0..12 {
        let client = if seed % 2 == 0 { test.client.clone() } else { elsewhere.clone() };
        callers.spawn(hammer(client, seed));
    }
    let answers = callers.join_all().await.into_iter().flatten().collect();
    let rows = test.sql.query("SELECT msg_id, message::text FROM pgmq.q_orders", &[]).await.unwrap();
    let stored = rows.iter().map(|row| (row.get(0), row.get::<_, String>(1).parse().unwrap())).collect();
    (answers, stored)
}

#[tokio::test]
async fn two_servers_store_each_key_once() {
    let (answers, stored) = hammered(&[]).await;

    assert_eq!(stored.len(), KEYS);
    for &(key, msg_id, _) in &answers {
        assert_eq!(stored.get(&msg_id), Some(&key), "{msg_id}");
    }
    let first = answers.iter().filter(|(_, _, deduplicated)| !deduplicated);
    assert_eq!(first.count(), KEYS);
}

#[tokio::test]
async fn nothing_is_lost_while_keys_expire_and_are_removed_all_the_time() {
    let (answers, stored) = hammered(&["--deduplication-window", "100ms"]).await;

    for &(key, msg_id, _) in &answers {
        assert_eq!(stored.get(&msg_id), Some(&key), "{msg_id}");
    }
    // Each stored message was somebody's first send, and told so once.
    let first: Vec<i64> =
        answers.iter().filter(|(_, _, deduplicated)| !deduplicated).map(|(_, msg_id, _)| *msg_id).collect();
    let distinct: HashSet<i64> = first.iter().copied().collect();
    assert_eq!((first.len(), distinct.len()), (stored.len(), stored.len()));
}

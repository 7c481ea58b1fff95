//! What needs a server of its own: one that may be ended, and whose database may be changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pgmq_grpc_client::{Code, Error, ErrorReason, Message, Outcome, Queue};
use serde_json::json;
use tokio::time::timeout;

use crate::support::{self, Server, eventually, new_queue};

#[tokio::test]
async fn over_a_unix_socket() -> support::Outcome {
    let Some(server) = Server::start("own").await else { return Ok(()) };
    a_send_that_is_not_answered_in_time_has_an_unknown_outcome(&server).await?;
    tokio::try_join!(
        a_shared_stream_ends_when_it_is_not_used_and_when_the_client_is_closed(&server),
        one_refused_message_does_not_decide_about_others(&server),
    )?;
    Ok(())
}

async fn a_shared_stream_ends_when_it_is_not_used_and_when_the_client_is_closed(
    server: &Server,
) -> support::Outcome {
    let watching = server.client();
    let streams = async || -> Result<i32, Error> {
        let info = watching.get_server_info().await?;
        Ok(info.state.map_or(-1, |state| state.produce_streams))
    };
    let none = || async { streams().await.is_ok_and(|streams| streams == 0) };
    eventually("no stream", none).await;
    let client = server.client();
    let queue = new_queue(&client).await;
    let share = async || tokio::try_join!(queue.send(json!(1)), queue.send(json!(2))).map(|_| ());
    let begun = Instant::now();
    share().await?;
    assert_eq!(streams().await?, 1);
    eventually("no stream", none).await;
    assert!(begun.elapsed() > Duration::from_secs(9));
    share().await?;
    assert_eq!(streams().await?, 1);
    let begun = Instant::now();
    client.clone().close().await;
    eventually("no stream", none).await;
    assert!(begun.elapsed() < Duration::from_secs(9));
    Ok(())
}

/// Calls that settle come together to one command, in which a trigger or a lock on one message is met.
async fn one_refused_message_does_not_decide_about_others(server: &Server) -> support::Outcome {
    let client = server.client();
    let queue = new_queue(&client).await;
    let (table, sql) = (format!("pgmq.q_{}", queue.name()), server.sql().await);
    sql.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'kept'; END $$",
    )
    .await?;
    let trigger = format!(
        "CREATE TRIGGER refuse BEFORE DELETE ON {table} FOR EACH ROW WHEN (OLD.message = '3') EXECUTE FUNCTION refuse()"
    );
    let lock = format!("BEGIN; SELECT FROM {table} WHERE message = '3' FOR UPDATE");
    for (reason, begin, end) in [
        (ErrorReason::RefusedByDatabase, trigger, format!("DROP TRIGGER refuse ON {table}")),
        (ErrorReason::QueueBusy, lock, "ROLLBACK".to_owned()),
    ] {
        queue.send_batch((0..20).map(|number| json!(number))).await?;
        let mut consumer = queue.consume().visibility_timeout(Duration::from_secs(1)).start();
        let mut held: Vec<Message> = Vec::new();
        while held.len() < 20 {
            held.extend(consumer.try_next().await?);
        }
        sql.batch_execute(&begin).await?;
        for (message, settled) in held.iter().zip(join_all(held.iter().map(Message::delete)).await) {
            match (message.message_text.as_str(), settled) {
                ("3", settled) => {
                    let error = settled.expect_err("it is refused");
                    assert!(error.is(reason) && !error.outcome_unknown(), "{error:?}");
                }
                (_, settled) => assert_eq!(settled?, Outcome::Done),
            }
        }
        let error = queue.delete([&held[3], &held[4]]).await.expect_err("it is refused");
        assert!(error.is(reason) && error.outcome_unknown(), "{error:?}");
        let error = queue.delete([&held[3]]).await.expect_err("it is refused");
        assert!(error.is(reason) && !error.outcome_unknown(), "{error:?}");
        let error = client.transact().with(queue.delete([&held[3]])).await.expect_err("it is refused");
        assert!(!error.outcome_unknown(), "{error:?}");
        sql.batch_execute(&end).await?;
        drop(held);
        let again = timeout(Duration::from_secs(30), consumer.try_next()).await;
        let again = again.expect("it comes back, because nobody has it any more")?.ok_or("there is more")?;
        assert_eq!((again.message_text.as_str(), again.read_ct), ("3", 2));
        assert_eq!(again.delete().await?, Outcome::Done);
        consumer.stop().await?;
    }
    queue.send_batch((0..5).map(|number| json!(number))).await?;
    let mut consumer = queue.consume().visibility_timeout(Duration::from_secs(3600)).start();
    let mut held: Vec<Message> = Vec::new();
    while held.len() < 5 {
        held.extend(consumer.try_next().await?);
    }
    let trigger = format!(
        "CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW WHEN (OLD.message = '3') EXECUTE FUNCTION refuse()"
    );
    sql.batch_execute(&format!("DELETE FROM {table} WHERE message = '4'; {trigger}")).await?;
    // The refused command may have settled what is gone, and it has extended nothing.
    let longer = join_all(held.iter().map(|message| message.extend(Duration::from_secs(7200)))).await;
    let deleted = join_all(held.iter().map(Message::delete)).await;
    for ((message, extended), deleted) in held.iter().zip(longer).zip(deleted) {
        match message.message_text.as_str() {
            "3" => assert!(extended.is_err() && deleted.is_err()),
            "4" => assert_eq!((extended?, deleted?), (Outcome::NotFound, Outcome::Done)),
            _ => assert_eq!((extended?, deleted?), (Outcome::Done, Outcome::Done)),
        }
    }
    sql.batch_execute(&format!("DROP TRIGGER refuse ON {table}")).await?;
    Ok(())
}

async fn a_send_that_is_not_answered_in_time_has_an_unknown_outcome(server: &Server) -> support::Outcome {
    let client = server.client();
    let queue = new_queue(&client).await;
    let sql = server.sql().await;
    sql.batch_execute(&format!("BEGIN; LOCK TABLE pgmq.q_{}", queue.name())).await?;
    let send = async |number: u32| queue.send(&number).timeout(Duration::from_millis(500)).await;
    let (alone, shared) = tokio::join!(send(1), send(2));
    for error in [alone.expect_err("the table is locked"), shared.expect_err("the table is locked")] {
        assert_eq!((error.code(), error.outcome_unknown()), (Code::DeadlineExceeded, true), "{error:?}");
    }
    sql.batch_execute("ROLLBACK").await?;
    Ok(())
}

#[tokio::test]
async fn what_is_sent_while_the_server_ends_is_stored_as_its_sender_is_told() -> support::Outcome {
    let Some(mut server) = Server::start("ended").await else { return Ok(()) };
    for signal in ["-KILL", "-TERM"] {
        let client = server.client();
        let queue = new_queue(&client).await;
        let sends = Sends::default();
        let senders = join_all((0..32).map(|sender| send_until_stopped(&queue, &sends, sender)));
        let end = async {
            eventually("a hundred messages", async || sends.stored.load(Ordering::Relaxed) > 100).await;
            if signal == "-KILL" {
                // From now on all that is sent stays unanswered.
                let sql = server.sql().await;
                let lock = format!("BEGIN; LOCK TABLE pgmq.q_{}", queue.name());
                sql.batch_execute(&lock).await.expect("the table is locked");
                client.get_server_info().await.expect("what was sent before this call has arrived");
                server.end(signal).await;
            } else {
                server.end(signal).await;
            }
            server.start_again().await;
            sends.stop.store(true, Ordering::Relaxed);
        };
        let (results, ()) = tokio::join!(senders, end);
        let mut stored: HashMap<String, usize> = HashMap::new();
        for message in queue.list_messages().page_size(1000).await? {
            *stored.entry(message.message_text).or_default() += 1;
        }
        let mut failures = 0;
        for (body, keyed, result) in results.into_iter().flatten() {
            let times = stored.get(&body).copied().unwrap_or_default();
            let right = match &result {
                Ok(()) => times == 1,
                Err(error) if error.outcome_unknown() => times <= 1,
                Err(_) => times == 0,
            };
            assert!(right, "{signal}: {body} is stored {times} times, and its sender was told {result:?}");
            assert!(result.is_ok() || !keyed, "{signal}: {body}: {result:?}");
            failures += usize::from(result.is_err());
        }
        assert!(signal != "-KILL" || failures > 0, "nothing was under way");
    }
    Ok(())
}

#[derive(Default)]
struct Sends {
    stored: AtomicUsize,
    stop: AtomicBool,
}

/// Sends messages one after the other, of which half have a deduplication id and are sent again until they are stored.
async fn send_until_stopped(
    queue: &Queue,
    sends: &Sends,
    sender: usize,
) -> Vec<(String, bool, Result<(), Error>)> {
    let mut results = Vec::new();
    let keyed = sender.is_multiple_of(2);
    while !sends.stop.load(Ordering::Relaxed) {
        let number = sender * 1_000_000 + results.len();
        let result = loop {
            let send = queue.send(&number);
            match if keyed { send.deduplication_id(number.to_string()).await } else { send.await } {
                Err(_) if keyed => continue,
                result => break result.map(|_| ()),
            }
        };
        if result.is_ok() {
            sends.stored.fetch_add(1, Ordering::Relaxed);
        }
        results.push((number.to_string(), keyed, result));
    }
    results
}

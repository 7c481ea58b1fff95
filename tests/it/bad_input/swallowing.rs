//! Triggers that swallow what is done to a row, by returning NULL: whoever wanted it hears so, and nothing is lost.

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use tonic::{Code, Status};

use crate::consume::{Consumer, settle, start};
use crate::harness::{Client, Refusal, Test, seconds};
use crate::read_batch::all_of;
use crate::settle::outcomes;
use crate::transaction::Open;

/// Swallows one kind of change of the messages `"swallowed"` of a table.
async fn swallow(test: &Test, change: &str, table: &str) {
    test.run(&format!(
        r#"CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF coalesce(NEW.message, OLD.message) = '"swallowed"' THEN RETURN NULL; END IF;
             IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
             RETURN NEW; END $$;
           CREATE TRIGGER swallow BEFORE {change} ON pgmq.{table} FOR EACH ROW EXECUTE FUNCTION swallow()"#
    ))
    .await;
}

/// A queue with a message that is swallowed and one that is not, both read.
async fn with_held() -> (Test, Vec<Message>) {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &[r#""swallowed""#, r#""kept""#]).await;
    let held = test.client.read_as(ReadBatchRequest { max_messages: 2, ..all_of("orders") }).await;
    (test, held)
}

/// How a change of messages can be asked for.
#[derive(Debug, Clone, Copy)]
enum Way {
    Unary,
    Transact,
    OpenTransaction,
}

impl Way {
    const ALL: [Self; 3] = [Self::Unary, Self::Transact, Self::OpenTransaction];

    /// Asks for it, in a transaction of its own.
    async fn ask(self, client: &mut Client, operation: Operation) -> Result<(), Status> {
        match self {
            Self::Unary => match operation {
                Operation::Delete(request) => client.queue.delete(request).await.map(drop),
                Operation::Archive(request) => client.queue.archive(request).await.map(drop),
                Operation::Release(request) => client.queue.release(request).await.map(drop),
                Operation::DeadLetter(request) => client.queue.dead_letter(request).await.map(drop),
                Operation::SetVisibilityTimeout(request) => {
                    client.queue.set_visibility_timeout(request).await.map(drop)
                }
                other => panic!("{other:?}"),
            },
            Self::Transact => client.queue.transact(super::transact([operation])).await.map(drop),
            Self::OpenTransaction => {
                let command = match operation {
                    Operation::Delete(request) => Command::Delete(request),
                    Operation::Archive(request) => Command::Archive(request),
                    Operation::Release(request) => Command::Release(request),
                    Operation::DeadLetter(request) => Command::DeadLetter(request),
                    Operation::SetVisibilityTimeout(request) => Command::SetVisibilityTimeout(request),
                    other => panic!("{other:?}"),
                };
                let mut open = Open::begin(client).await;
                open.give(command).await;
                open.next().await.expect("a reply")?;
                open.commit().await;
                Ok(())
            }
        }
    }
}

fn expect_swallowed(status: &Status) {
    let refusal = Refusal::expect(status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert_eq!(refusal.metadata.get("sqlstate"), None, "{refusal:?}");
    assert!(refusal.message.contains("swallows") && refusal.retry_delay.is_none(), "{refusal:?}");
}

/// The rows of the queue and of its archive.
async fn rows(test: &Test) -> (i64, i64) {
    let count = async |table| test.value(&format!("SELECT count(*) FROM pgmq.{table}")).await;
    (count("q_orders").await, count("a_orders").await)
}

fn archive(receipts: &[&Message], msg_ids: &[i64]) -> Operation {
    let receipts = receipts.iter().map(|message| message.receipt.clone()).collect();
    Operation::Archive(ArchiveRequest { queue: "orders".to_owned(), receipts, msg_ids: msg_ids.to_vec() })
}

#[tokio::test]
async fn an_archive_that_swallows_a_message_leaves_it_in_the_queue() {
    for way in Way::ALL {
        let (mut test, held) = with_held().await;
        swallow(&test, "INSERT", "a_orders").await;
        for operation in [
            archive(&[&held[0]], &[]),
            archive(&[&held[1], &held[0]], &[]),
            archive(&[], &[1]),
            archive(&[], &[1, 2]),
        ] {
            let status = way.ask(&mut test.client, operation).await.unwrap_err();
            expect_swallowed(&status);
            assert_eq!(rows(&test).await, (2, 0), "{way:?}");
        }
        way.ask(&mut test.client, archive(&[&held[1]], &[])).await.unwrap();
        assert_eq!(rows(&test).await, (1, 1), "{way:?}");
    }
}

#[tokio::test]
async fn an_archive_that_swallows_a_message_refuses_its_command_of_a_stream_alone() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &[r#""swallowed""#, r#""kept""#]).await;
    swallow(&test, "INSERT", "a_orders").await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let held = consumer.take(2).await;
    let commands: Vec<u64> =
        held.iter().map(|message| consumer.send(settle(SettleAction::Archive, &[message]))).collect();
    let error = consumer.error(commands[0]).await;
    assert_eq!(error.reason(), ErrorReason::RefusedByDatabase, "{error:?}");
    assert_eq!(outcomes(&consumer.items(commands[1]).await), [Outcome::Done]);
    assert_eq!(rows(&test).await, (1, 1));
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
}

/// What is done to messages, by receipts or by ids.
type Deed = fn(Vec<String>, Vec<i64>) -> Operation;

fn queue() -> String {
    "orders".to_owned()
}

/// Everything that is done to messages that were read, and the change of a row that it is.
fn deeds() -> Vec<(Deed, &'static str)> {
    let delete = |receipts, msg_ids| Operation::Delete(DeleteRequest { queue: queue(), receipts, msg_ids });
    let archive =
        |receipts, msg_ids| Operation::Archive(ArchiveRequest { queue: queue(), receipts, msg_ids });
    let hide = |receipts, msg_ids| {
        Operation::SetVisibilityTimeout(SetVisibilityTimeoutRequest {
            queue: queue(),
            receipts,
            msg_ids,
            visibility: seconds(600.0).map(Visibility::VisibilityTimeout),
            return_messages: false,
        })
    };
    let release =
        |receipts, _| Operation::Release(ReleaseRequest { queue: queue(), receipts, delay: seconds(600.0) });
    let dead_letter = |receipts, _| {
        Operation::DeadLetter(DeadLetterRequest { queue: queue(), receipts, reason: String::new() })
    };
    vec![
        (delete, "DELETE"),
        (archive, "DELETE"),
        (dead_letter, "DELETE"),
        (hide, "UPDATE"),
        (release, "UPDATE"),
    ]
}

#[tokio::test]
async fn a_queue_that_swallows_changes_refuses_them_and_is_not_called_busy() {
    for way in Way::ALL {
        for (deed, change) in deeds() {
            let mut test = crate::dead_letters::orders(5).await;
            test.client.send_all("orders", &[r#""swallowed""#, r#""kept""#]).await;
            let held = test.client.read_as(ReadBatchRequest { max_messages: 2, ..all_of("orders") }).await;
            swallow(&test, change, "q_orders").await;
            let receipt = |at: usize| held[at].receipt.clone();
            let mut swallowed =
                vec![deed(vec![receipt(0)], vec![]), deed(vec![receipt(1), receipt(0)], vec![])];
            match deed(vec![], vec![1]) {
                Operation::Release(_) | Operation::DeadLetter(_) => {}
                by_id => swallowed.insert(0, by_id),
            }
            let before = super::contents(&test).await;
            for operation in swallowed {
                let text = format!("{way:?} {operation:?}");
                let status = way.ask(&mut test.client, operation).await.expect_err(&text);
                let refusal = Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
                assert!(refusal.retry_delay.is_none(), "{text} {refusal:?}");
                let is_whole = super::contents(&test).await == before;
                assert_eq!(refusal.message.contains("nothing was applied"), is_whole, "{text} {refusal:?}");
            }
            let is_whole = super::contents(&test).await == before;
            // Outside transactions, the other message of the two is settled.
            assert_eq!(is_whole, !matches!(way, Way::Unary), "{way:?} {change}");
            let left = "SELECT count(*) FROM pgmq.q_orders WHERE msg_id = 1 AND vt < now() + interval '60 s'";
            assert_eq!(test.value::<i64>(left).await, 1);
            if !matches!(way, Way::Unary) {
                way.ask(&mut test.client, deed(vec![receipt(1)], vec![])).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_queue_that_swallows_changes_refuses_the_commands_of_a_stream() {
    let actions = [
        (SettleAction::Delete, "DELETE"),
        (SettleAction::Archive, "DELETE"),
        (SettleAction::DeadLetter, "DELETE"),
        (SettleAction::Release, "UPDATE"),
        (SettleAction::GiveBack, "UPDATE"),
    ];
    for (action, change) in actions {
        let mut test = crate::dead_letters::orders(5).await;
        test.client.send_all("orders", &[r#""swallowed""#, r#""kept""#]).await;
        let mut consumer = Consumer::start(&test.client, start("orders")).await;
        let held = consumer.take(2).await;
        swallow(&test, change, "q_orders").await;
        let commands: Vec<u64> =
            held.iter().map(|message| consumer.send(settle(action, &[message]))).collect();
        let error = consumer.error(commands[0]).await;
        assert_eq!(error.reason(), ErrorReason::RefusedByDatabase, "{action:?} {error:?}");
        assert_eq!(outcomes(&consumer.items(commands[1]).await), [Outcome::Done], "{action:?}");
    }
}

#[tokio::test]
async fn a_message_that_others_hold_is_busy_and_not_swallowed() {
    for (deed, change) in deeds() {
        let mut test = crate::dead_letters::orders(5).await;
        test.client.send_all("orders", &[r#""swallowed""#, r#""kept""#]).await;
        let held = test.client.read_as(ReadBatchRequest { max_messages: 2, ..all_of("orders") }).await;
        swallow(&test, change, "q_orders").await;
        let other = test.database.connect().await;
        other.batch_execute("BEGIN; SELECT FROM pgmq.q_orders FOR UPDATE").await.unwrap();
        let operation = deed(held.iter().map(|message| message.receipt.clone()).collect(), vec![]);
        let status = Way::Unary.ask(&mut test.client, operation).await.unwrap_err();
        Refusal::expect(&status, Code::Aborted, "QUEUE_BUSY");
    }
}

//! Triggers that swallow what is done to a row, by returning NULL: whoever wanted it hears so, and nothing is lost.

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use tonic::{Code, Status};

use crate::consume::{Consumer, settle, start};
use crate::harness::{Client, Refusal, Test};
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
                Operation::Archive(request) => client.queue.archive(request).await.map(drop),
                other => panic!("{other:?}"),
            },
            Self::Transact => client.queue.transact(super::transact([operation])).await.map(drop),
            Self::OpenTransaction => {
                let command = match operation {
                    Operation::Archive(request) => Command::Archive(request),
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

//! `OpenTransaction`: calls one after the other in one database transaction.

mod ending;
mod limits;
mod steps;

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::{
    Begin, Commit, DeleteRequest, Message, OpenTransactionRequest, OpenTransactionResponse, ReadBatchRequest,
    Rollback, SendRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::harness::{Client, PATIENCE, Test};

/// A stream of commands and its replies.
pub(crate) struct Open {
    commands: mpsc::Sender<OpenTransactionRequest>,
    replies: Streaming<OpenTransactionResponse>,
}

impl Open {
    /// A stream on which nothing was said yet.
    pub(crate) async fn stream(client: &Client) -> Self {
        Self::try_stream(client).await.expect("a stream")
    }

    async fn try_stream(client: &Client) -> Result<Self, Status> {
        let (commands, received) = mpsc::channel(100);
        let request = Request::new(ReceiverStream::new(received));
        let replies = client.transaction.clone().open_transaction(request).await?.into_inner();
        Ok(Self { commands, replies })
    }

    /// A transaction that has begun.
    pub(crate) async fn begin(client: &Client) -> Self {
        let mut open = Self::stream(client).await;
        assert!(matches!(open.done(begin()).await, Reply::Begun(_)));
        open
    }

    /// Gives a command without waiting for its reply.
    pub(crate) async fn give(&mut self, command: Command) {
        let command = OpenTransactionRequest { command: Some(command) };
        // A stream that has ended takes none, and its end says why.
        let _ = self.commands.send(command).await;
    }

    /// The next reply; none at an end with OK.
    pub(crate) async fn next(&mut self) -> Option<Result<Reply, Status>> {
        let next = tokio::time::timeout(PATIENCE, self.replies.message()).await.expect("a reply or an end");
        next.transpose().map(|reply| reply.map(|reply| reply.reply.expect("a reply of a kind")))
    }

    /// Gives a command and waits for its reply.
    pub(crate) async fn done(&mut self, command: Command) -> Reply {
        self.give(command).await;
        self.next().await.expect("no end").expect("no error")
    }

    /// Gives a command that fails, which ends the stream.
    pub(crate) async fn refused(mut self, command: Command) -> Status {
        self.give(command).await;
        self.failure().await
    }

    /// The status with which the stream ends.
    pub(crate) async fn failure(mut self) -> Status {
        let status = self.next().await.expect("an error").expect_err("an error");
        assert!(self.next().await.is_none(), "nothing follows an error");
        status
    }

    /// Commits, and checks that the stream ends.
    pub(crate) async fn commit(mut self) {
        assert!(matches!(self.done(commit()).await, Reply::Committed(_)));
        assert!(self.next().await.is_none());
    }

    /// Reads the one message that is there.
    pub(crate) async fn read_one(&mut self, queue: &str) -> Message {
        match self.done(read(queue)).await {
            Reply::ReadBatch(read) => read.messages.into_iter().next().expect("a message"),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn begin() -> Command {
    Command::Begin(Begin::default())
}

pub(crate) fn commit() -> Command {
    Command::Commit(Commit {})
}

pub(crate) fn rollback() -> Command {
    Command::Rollback(Rollback {})
}

pub(crate) fn send(queue: &str, message: &str) -> Command {
    let (queue, message) = (queue.to_owned(), message.to_owned());
    Command::Send(SendRequest { queue, message, ..Default::default() })
}

pub(crate) fn read(queue: &str) -> Command {
    Command::ReadBatch(ReadBatchRequest { queue: queue.to_owned(), max_messages: 1, ..Default::default() })
}

pub(crate) fn delete(queue: &str, message: &Message) -> Command {
    let receipts = vec![message.receipt.clone()];
    Command::Delete(DeleteRequest { queue: queue.to_owned(), receipts, ..Default::default() })
}

/// How many rows a queue has, as plain SQL sees it.
pub(crate) async fn count(test: &Test, queue: &str) -> i64 {
    test.value(&format!("SELECT count(*) FROM pgmq.q_{queue}")).await
}

/// How many connections are in a transaction.
pub(crate) async fn open_transactions(test: &Test) -> i64 {
    test.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
         AND xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )
    .await
}

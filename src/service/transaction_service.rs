//! `pgmq.v1.TransactionService`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tonic::{Request, Response, Status, Streaming};

use super::call::{check_named, checked_caller, named_queue, request_id};
use super::convert::{Fields, FromRequest, idle_timeout};
use super::incoming::{Incoming, next};
use super::stream::NO_DEADLINE;
use super::{RequestId, Service, to_status};
use crate::domain::{Caller, Deadline, Error, Invalid, Kind, Result};
use crate::proto::v1::open_transaction_request::Command;
use crate::proto::v1::open_transaction_response::Reply;
use crate::proto::v1::transaction_service_server::TransactionService;
use crate::proto::v1::{Begun, Committed, OpenTransactionRequest, OpenTransactionResponse, RolledBack};
use crate::queue::{self, GOODBYE, InTransaction, Transaction};

#[tonic::async_trait]
impl TransactionService for Service {
    type OpenTransactionStream = Replies;

    async fn open_transaction(
        &self,
        request: Request<Streaming<OpenTransactionRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let request_id = request_id(&request);
        if self.broker.drain.is_cancelled() {
            return Err(to_status(&Error::draining(), &request_id));
        }
        let caller = checked_caller(&request).map_err(|error| to_status(&error, &request_id))?;
        let (sender, replies) = mpsc::channel(1);
        let session = Session {
            service: self.clone(),
            deadline: self.deadline(&request, NO_DEADLINE),
            idle: self.broker.transactions.limits.idle,
            caller,
            named: named_queue(&request),
            commands: request.into_inner(),
            replies: sender,
        };
        self.broker.tasks.spawn(session.run());
        Ok(Response::new(Replies { replies, request_id }))
    }
}

/// The replies of one transaction.
pub struct Replies {
    replies: mpsc::Receiver<Result<Reply>>,
    request_id: RequestId,
}

impl Stream for Replies {
    type Item = Result<OpenTransactionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.replies.poll_recv(context).map(|reply| {
            let reply = reply?;
            let answer = reply.map(|reply| OpenTransactionResponse { reply: Some(reply) });
            Some(answer.map_err(|error| to_status(&error, &self.request_id)))
        })
    }
}

/// One stream: its transaction, from `begin` to its end.
struct Session {
    service: Service,
    commands: Streaming<OpenTransactionRequest>,
    replies: mpsc::Sender<Result<Reply>>,
    deadline: Deadline,
    idle: Duration,
    caller: Caller,
    /// The queue that the call's metadata names, if it does.
    named: Option<Bytes>,
}

/// How the commands of a transaction ended.
enum Ending {
    Commit,
    RollBack,
    Gone,
}

impl Session {
    async fn run(mut self) {
        let last = match self.transact().await {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let _ = timeout(GOODBYE, self.replies.send(last)).await;
    }

    /// Runs the transaction; gives the last reply, if anybody waits for one.
    async fn transact(&mut self) -> Result<Option<Reply>> {
        let Some(mut transaction) = self.begin().await? else {
            return Ok(None);
        };
        let ended = Box::pin(self.obey(&mut transaction)).await;
        match ended {
            Ok(Ending::Commit) => {
                // To its end, whoever waits for it: its answer is the truth.
                transaction.commit().await?;
                Ok(Some(Reply::Committed(Committed {})))
            }
            Ok(Ending::RollBack) => {
                transaction.roll_back().await;
                Ok(Some(Reply::RolledBack(RolledBack {})))
            }
            Ok(Ending::Gone) => {
                transaction.roll_back().await;
                Ok(None)
            }
            Err(error) => {
                transaction.roll_back().await;
                Err(error)
            }
        }
    }

    async fn begin(&mut self) -> Result<Option<Transaction>> {
        // Only the client's own deadline counts before the begin.
        let never = Deadline::within(NO_DEADLINE);
        let begin = match self.next(never).await? {
            Incoming::Command(Command::Begin(begin)) => begin,
            Incoming::Command(_) => return Err(protocol("the first command must be begin")),
            Incoming::End | Incoming::Gone => return Ok(None),
        };
        let mut fields = Fields::default();
        let idle = fields.within("begin.", |fields| idle_timeout(fields, begin, self.idle));
        self.idle = fields.finish(idle)?;
        let broker = self.service.broker.clone();
        // Before it holds a connection, which it could wait for.
        broker.learn_policies(self.deadline).await?;
        let transaction = tokio::select! {
            begun = Box::pin(Transaction::begin(&broker, self.deadline)) => begun?,
            interrupted = self.interrupted(never) => return interrupted.map_or(Ok(None), Err),
        };
        match self.reply(Reply::Begun(Begun {}), &transaction).await {
            Ok(true) => Ok(Some(transaction)),
            Ok(false) => {
                transaction.roll_back().await;
                Ok(None)
            }
            Err(error) => {
                transaction.roll_back().await;
                Err(error)
            }
        }
    }

    /// Does one command after the other, until one of them ends the transaction.
    async fn obey(&mut self, transaction: &mut Transaction) -> Result<Ending> {
        let ends = transaction.ends();
        loop {
            let command = match self.next(ends).await? {
                Incoming::Command(Command::Commit(_)) => return Ok(Ending::Commit),
                Incoming::Command(Command::Rollback(_)) => return Ok(Ending::RollBack),
                Incoming::Command(command) => command,
                Incoming::End | Incoming::Gone => return Ok(Ending::Gone),
            };
            let reply = tokio::select! {
                reply = self.apply(transaction, command) => reply?,
                interrupted = self.interrupted(ends) => return interrupted.map_or(Ok(Ending::Gone), Err),
            };
            if !self.reply(reply, transaction).await? {
                return Ok(Ending::Gone);
            }
        }
    }

    /// The next command, if it comes in time.
    async fn next(&mut self, ends: Deadline) -> Result<Incoming<Command>> {
        let idle = self.idle;
        // Borrowed apart, so that both can be waited for.
        let Self { commands, replies, service, deadline, .. } = self;
        let incoming = tokio::select! {
            incoming = timeout(idle, next(commands)) => incoming.map_err(|_| expired("idle", idle))??,
            interrupted = interrupted(service, replies, *deadline, ends) => {
                return interrupted.map_or(Ok(Incoming::Gone), Err);
            }
        };
        match incoming {
            Incoming::Command(OpenTransactionRequest { command: Some(command) }) => {
                Ok(Incoming::Command(command))
            }
            Incoming::Command(OpenTransactionRequest { command: None }) => {
                let missing = Invalid::new(Kind::MissingField, "a command is needed");
                Err(Error::invalid(vec![missing.at("command")]))
            }
            Incoming::End => Ok(Incoming::End),
            Incoming::Gone => Ok(Incoming::Gone),
        }
    }

    /// Sends a reply; false if the client is gone. A client that does not take it is idle.
    async fn reply(&self, reply: Reply, transaction: &Transaction) -> Result<bool> {
        tokio::select! {
            sent = timeout(self.idle, self.replies.send(Ok(reply))) => match sent {
                Ok(sent) => Ok(sent.is_ok()),
                Err(_) => Err(expired("idle", self.idle)),
            },
            interrupted = self.interrupted(transaction.ends()) => interrupted.map_or(Ok(false), Err),
        }
    }

    async fn interrupted(&self, ends: Deadline) -> Option<Error> {
        interrupted(&self.service, &self.replies, self.deadline, ends).await
    }
}

/// Waits for what ends a transaction from outside: an error to tell, or nothing if the client is gone.
async fn interrupted(
    service: &Service,
    replies: &mpsc::Sender<Result<Reply>>,
    deadline: Deadline,
    ends: Deadline,
) -> Option<Error> {
    tokio::select! {
        () = replies.closed() => None,
        () = service.broker.drain.cancelled() => Some(Error::draining()),
        () = sleep_until(deadline.instant()) => {
            let message = "the deadline expired before the commit; nothing of the transaction was applied";
            Some(Error::new(Kind::DeadlineExceeded, message))
        }
        () = sleep_until(ends.instant()) => Some(expired("total", service.broker.transactions.limits.total)),
    }
}

fn expired(limit: &str, after: Duration) -> Error {
    let what = if limit == "idle" { "was idle for" } else { "had not ended after" };
    let millis = after.as_millis();
    Error::new(
        Kind::TransactionExpired,
        format!("the transaction {what} {millis} ms and was rolled back; nothing was applied"),
    )
    .with("limit", limit)
    .with("limit_ms", millis.to_string())
}

fn protocol(what: &str) -> Error {
    Error::new(Kind::StreamProtocol, format!("{what}; nothing was applied"))
}

impl Session {
    /// Does one command in a transaction.
    async fn apply(&self, transaction: &mut Transaction, command: Command) -> Result<Reply> {
        macro_rules! commands {
            ($($variant:ident = $path:literal),* $(,)?) => {
                match command {
                    Command::Begin(_) => Err(protocol("the transaction has begun already")),
                    // They end the transaction before they get here.
                    Command::Commit(_) | Command::Rollback(_) => Err(protocol("the transaction has ended")),
                    $(Command::$variant(request) => {
                        let step = self.step::<queue::$variant, _, _>(transaction, $path, request);
                        Box::pin(step).await.map(Reply::$variant)
                    })*
                }
            };
        }
        commands! {
            CreateQueue = "create_queue.",
            ListQueues = "list_queues.",
            GetQueueMetrics = "get_queue_metrics.",
            ListQueueMetrics = "list_queue_metrics.",
            Send = "send.",
            SendBatch = "send_batch.",
            ReadBatch = "read_batch.",
            Pop = "pop.",
            Delete = "delete.",
            Archive = "archive.",
            Release = "release.",
            DeadLetter = "dead_letter.",
            SetVisibilityTimeout = "set_visibility_timeout.",
            SendTopic = "send_topic.",
            SendTopicBatch = "send_topic_batch.",
            BindTopic = "bind_topic.",
            UnbindTopic = "unbind_topic.",
            ListTopicBindings = "list_topic_bindings.",
            TestRouting = "test_routing.",
            DropQueue = "drop_queue.",
            PurgeQueue = "purge_queue.",
            CreateFifoIndex = "create_fifo_index.",
            ConvertArchivePartitioned = "convert_archive_partitioned.",
            EnableNotifications = "enable_notifications.",
            DisableNotifications = "disable_notifications.",
            UpdateNotifications = "update_notifications.",
            ListNotifications = "list_notifications.",
            UpdateQueue = "update_queue.",
        }
    }

    async fn step<O, Req, Res>(&self, transaction: &mut Transaction, path: &str, request: Req) -> Result<Res>
    where
        O: FromRequest<Req> + InTransaction,
        Res: From<O::Output>,
    {
        let broker = &self.service.broker;
        O::uses(&request, &mut |role, queue| broker.clients.called(&self.caller, role, queue));
        let mut fields = Fields::of_open_transaction();
        let operation = fields.within(path, |fields| {
            if let (Some(named), Some(queue)) = (&self.named, O::queue(&request)) {
                check_named(fields, named, queue);
            }
            O::parse(request, &broker.rules, fields)
        });
        let operation = fields.finish(operation)?;
        transaction.run(operation).await.map(Res::from)
    }
}

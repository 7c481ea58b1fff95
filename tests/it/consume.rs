//! `Consume`: messages out and settles in, over one stream.

mod commands;
mod ending;
mod extending;
mod flow;
mod giving_back;
mod protocol;
mod replicas;

use std::time::Instant;

use pgmq_grpc::proto::v1::consume_request::Command;
use pgmq_grpc::proto::v1::{
    ClientHeartbeat, Closing, CommandError, CommandResult, ConsumeRequest, ConsumeResponse, ConsumeStart,
    Credit, Extend, Heartbeat, ItemResult, Message, Outcome, Settle, SettleAction, Stop, StreamStarted,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::harness::{Client, PATIENCE, seconds};
use crate::read_batch::ids;

/// An open stream, from its client's side. What came and was not asked for yet is kept.
pub(crate) struct Consumer {
    commands: Option<mpsc::UnboundedSender<ConsumeRequest>>,
    replies: Streaming<ConsumeResponse>,
    next_request_id: u64,
    pub(crate) messages: Vec<Message>,
    pub(crate) results: Vec<CommandResult>,
    pub(crate) closing: Option<Closing>,
    heartbeats: Vec<Heartbeat>,
    stopped: usize,
}

/// How a stream ended.
pub(crate) struct End {
    pub(crate) messages: Vec<Message>,
    pub(crate) results: Vec<CommandResult>,
    pub(crate) closing: Option<Closing>,
    pub(crate) status: Result<(), Status>,
}

impl Consumer {
    /// Opens a stream; headers come before any command.
    pub(crate) async fn open(client: &Client) -> Self {
        Self::open_with(client, |_| {}).await
    }

    /// The same with something set on the call.
    pub(crate) async fn open_with(client: &Client, set: impl FnOnce(&mut Request<()>)) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut call = Request::new(());
        set(&mut call);
        let (metadata, extensions, ()) = call.into_parts();
        let request = Request::from_parts(metadata, extensions, UnboundedReceiverStream::new(receiver));
        let opened = client.clone().queue.consume(request).await;
        Self {
            commands: Some(commands),
            replies: opened.expect("headers").into_inner(),
            next_request_id: 1,
            messages: Vec::new(),
            results: Vec::new(),
            closing: None,
            heartbeats: Vec::new(),
            stopped: 0,
        }
    }

    /// Opens a stream and starts it.
    pub(crate) async fn start(client: &Client, start: ConsumeStart) -> Self {
        Self::start_and_tell(client, start).await.0
    }

    /// The same, with its first reply.
    pub(crate) async fn start_and_tell(client: &Client, start: ConsumeStart) -> (Self, StreamStarted) {
        let mut consumer = Self::open(client).await;
        consumer.send(Command::Start(start));
        let first = consumer.reply().await.expect("no end").expect("no error");
        let started = first.started.clone().expect("started comes first");
        consumer.keep(first);
        (consumer, started)
    }

    /// Sends a command, and gives its number.
    pub(crate) fn send(&mut self, command: Command) -> u64 {
        let request_id = self.next_request_id;
        self.next_request_id += 1;
        self.send_as(request_id, Some(command));
        request_id
    }

    /// Sends anything.
    pub(crate) fn send_as(&mut self, request_id: u64, command: Option<Command>) {
        let commands = self.commands.as_ref().expect("commands that are not ended");
        // A stream that has ended takes none any more, which its end tells.
        let _ = commands.send(ConsumeRequest { request_id, command });
    }

    /// Sends no more commands.
    pub(crate) fn half_close(&mut self) {
        self.commands = None;
    }

    async fn reply(&mut self) -> Option<Result<ConsumeResponse, Status>> {
        let reply = tokio::time::timeout(PATIENCE, self.replies.message()).await;
        reply.expect("a reply, a heartbeat or an end").transpose()
    }

    fn keep(&mut self, reply: ConsumeResponse) {
        let is_last = reply.closing.is_some() || reply.stopped.is_some();
        let was_last = self.closing.is_some() || self.stopped > 0;
        assert!(reply.messages.is_empty() || !is_last && !was_last, "a message after the last one");
        self.messages.extend(reply.messages);
        self.results.extend(reply.command_results);
        self.heartbeats.extend(reply.heartbeat);
        self.stopped += usize::from(reply.stopped.is_some());
        if let Some(closing) = reply.closing {
            assert!(self.closing.replace(closing).is_none(), "closing comes once");
        }
    }

    /// Takes replies until something is there.
    async fn until<T>(&mut self, what: &str, mut find: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = find(self) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} did not come");
            match self.reply().await {
                Some(Ok(reply)) => self.keep(reply),
                other => panic!("{what} did not come, but {other:?}"),
            }
        }
    }

    /// Exactly so many messages.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Message> {
        self.until("messages", |this| (this.messages.len() >= count).then_some(())).await;
        assert_eq!(self.messages.len(), count, "{:?}", ids(&self.messages));
        std::mem::take(&mut self.messages)
    }

    /// All messages that have come; at least one.
    pub(crate) async fn some(&mut self) -> Vec<Message> {
        self.until("messages", |this| (!this.messages.is_empty()).then_some(())).await;
        std::mem::take(&mut self.messages)
    }

    /// The next message, which comes alone.
    pub(crate) async fn message(&mut self) -> Message {
        self.take(1).await.remove(0)
    }

    /// The result of a command.
    pub(crate) async fn result(&mut self, request_id: u64) -> CommandResult {
        self.until("a result", |this| {
            let place = this.results.iter().position(|result| result.request_id == request_id)?;
            Some(this.results.remove(place))
        })
        .await
    }

    /// The results of a command that did not fail.
    pub(crate) async fn items(&mut self, request_id: u64) -> Vec<ItemResult> {
        let result = self.result(request_id).await;
        assert!(result.error.is_none(), "{result:?}");
        result.results
    }

    /// The error of a command that failed.
    pub(crate) async fn error(&mut self, request_id: u64) -> CommandError {
        let result = self.result(request_id).await;
        assert!(result.results.is_empty(), "{result:?}");
        result.error.expect("an error")
    }

    /// Settles and waits for the outcomes.
    pub(crate) async fn settle(&mut self, action: SettleAction, messages: &[&Message]) -> Vec<Outcome> {
        let request_id = self.send(settle(action, messages));
        self.items(request_id).await.iter().map(ItemResult::outcome).collect()
    }

    /// The next heartbeat; no message comes before it.
    pub(crate) async fn heartbeat(&mut self) -> Heartbeat {
        self.heartbeats.clear();
        let heartbeat = self.until("a heartbeat", |this| this.heartbeats.pop()).await;
        assert!(self.messages.is_empty(), "{:?}", ids(&self.messages));
        heartbeat
    }

    /// Waits for so many answers to `stop` in all.
    pub(crate) async fn stopped(&mut self, times: usize) {
        self.until("stopped", |this| (this.stopped >= times).then_some(())).await;
    }

    /// Waits for `closing`.
    pub(crate) async fn closing(&mut self) -> Closing {
        self.until("closing", |this| this.closing).await
    }

    /// What comes before the end, and the end.
    pub(crate) async fn end(mut self) -> End {
        let status = loop {
            match self.reply().await {
                None => break Ok(()),
                Some(Err(status)) => break Err(status),
                Some(Ok(reply)) => self.keep(reply),
            }
        };
        End { messages: self.messages, results: self.results, closing: self.closing, status }
    }
}

/// A start with heartbeats every second.
pub(crate) fn start(queue: &str) -> ConsumeStart {
    ConsumeStart { queue: queue.to_owned(), heartbeat_interval: seconds(1.0), ..Default::default() }
}

/// A settle by messages.
pub(crate) fn settle(action: SettleAction, messages: &[&Message]) -> Command {
    settle_receipts(action, receipts(messages))
}

/// A settle by texts.
pub(crate) fn settle_receipts(action: SettleAction, receipts: Vec<String>) -> Command {
    Command::Settle(Settle { receipts, action: action.into(), ..Default::default() })
}

/// An extend by messages.
pub(crate) fn extend(messages: &[&Message], timeout_s: Option<f64>) -> Command {
    let visibility_timeout = timeout_s.and_then(seconds);
    Command::Extend(Extend { receipts: receipts(messages), visibility_timeout })
}

fn receipts(messages: &[&Message]) -> Vec<String> {
    messages.iter().map(|message| message.receipt.clone()).collect()
}

/// Credit for so many messages.
pub(crate) fn credit(messages: i32) -> Command {
    Command::Credit(Credit { messages })
}

/// The end of the messages.
pub(crate) fn stop() -> Command {
    Command::Stop(Stop {})
}

/// A sign of life.
pub(crate) fn alive() -> Command {
    Command::Heartbeat(ClientHeartbeat {})
}

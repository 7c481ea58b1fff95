//! Workers who share streams of `Consume` and settle one message at a time.
//!
//! What several workers settle at the same time travels in one command, as a client library would do it: the command is
//! written as soon as the transport takes it, and holds what is ready by then. A message counts when the server has said
//! `DONE` for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::channel::connect;
use super::meter::Meter;
use crate::proto::consume_request::Command;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::proto::{ConsumeRequest, ConsumeResponse, ConsumeStart, Message, Outcome, Settle, SettleAction};

/// The most receipts in a command.
const COMMAND_RECEIPTS: usize = 500;

/// How workers share a stream.
#[derive(Clone, Debug)]
pub struct Workers {
    /// The queue.
    pub queue: String,
    /// How many workers.
    pub workers: usize,
    /// How many messages the stream holds at most.
    pub max_in_flight: i32,
    /// Whether a worker waits for the verdict on its message before it takes the next one.
    pub awaits_verdict: bool,
}

struct Delivered {
    receipt: String,
    at: Instant,
    verdict: Option<oneshot::Sender<()>>,
}

/// Starts the workers, evenly on so many streams, each with a connection.
pub async fn start(meter: &Arc<Meter>, server: &str, workers: &Workers, streams: usize) -> Result<()> {
    for channel in connect(server, streams).await? {
        let share = Workers { workers: workers.workers.div_ceil(streams), ..workers.clone() };
        open(meter, channel, &share, |_| {}).await?;
    }
    Ok(())
}

/// Opens one stream with its workers. `seen` looks at each message when it arrives.
pub async fn open(
    meter: &Arc<Meter>,
    channel: Channel,
    workers: &Workers,
    seen: impl Fn(&Message) + Send + Sync + 'static,
) -> Result<()> {
    let (commands, outgoing) = mpsc::channel(4);
    let (settle, settles) = mpsc::channel::<Delivered>(8_192);
    let (pending, registered) = mpsc::unbounded_channel();
    let start = ConsumeStart {
        queue: workers.queue.clone(),
        max_in_flight: workers.max_in_flight,
        ..ConsumeStart::default()
    };
    commands.send(ConsumeRequest { request_id: 0, command: Some(Command::Start(start)) }).await?;
    let mut client = QueueServiceClient::new(channel);
    let answers = client.consume(ReceiverStream::new(outgoing)).await.context("Consume")?.into_inner();
    let mut inboxes = Vec::with_capacity(workers.workers);
    for _ in 0..workers.workers {
        let (inbox, messages) = mpsc::channel(usize::try_from(workers.max_in_flight)?.max(1));
        inboxes.push(inbox);
        tokio::spawn(work(messages, settle.clone(), workers.awaits_verdict));
    }
    tokio::spawn(write(settles, commands, pending));
    let meter = Arc::clone(meter);
    tokio::spawn(async move {
        if let Err(error) = read(&meter, answers, &inboxes, registered, seen).await {
            meter.failed(format!("{error:#}"));
        }
    });
    Ok(())
}

/// Takes a message, is done with it at once, and settles it.
async fn work(
    mut messages: mpsc::Receiver<(Message, Instant)>,
    settle: mpsc::Sender<Delivered>,
    awaits_verdict: bool,
) {
    while let Some((message, at)) = messages.recv().await {
        let (verdict, done) = match awaits_verdict {
            true => Some(oneshot::channel()).unzip(),
            false => (None, None),
        };
        if settle.send(Delivered { receipt: message.receipt, at, verdict }).await.is_err() {
            return;
        }
        if let Some(done) = done
            && done.await.is_err()
        {
            return;
        }
    }
}

async fn write(
    mut settles: mpsc::Receiver<Delivered>,
    commands: mpsc::Sender<ConsumeRequest>,
    pending: mpsc::UnboundedSender<(u64, Vec<Delivered>)>,
) {
    let mut request_id = 1;
    while let Ok(place) = commands.reserve().await {
        let mut gathered = Vec::with_capacity(COMMAND_RECEIPTS);
        if settles.recv_many(&mut gathered, COMMAND_RECEIPTS).await == 0 {
            return;
        }
        let receipts = gathered.iter_mut().map(|delivered| std::mem::take(&mut delivered.receipt)).collect();
        if pending.send((request_id, gathered)).is_err() {
            return;
        }
        let action = SettleAction::Delete.into();
        let settle = Settle { receipts, action, ..Settle::default() };
        place.send(ConsumeRequest { request_id, command: Some(Command::Settle(settle)) });
        request_id += 1;
    }
}

async fn read(
    meter: &Meter,
    mut answers: Streaming<ConsumeResponse>,
    inboxes: &[mpsc::Sender<(Message, Instant)>],
    mut registered: mpsc::UnboundedReceiver<(u64, Vec<Delivered>)>,
    seen: impl Fn(&Message),
) -> Result<()> {
    let mut waiting: HashMap<u64, Vec<Delivered>> = HashMap::new();
    let mut turn = 0;
    while let Some(answer) = answers.message().await? {
        if let Some(closing) = answer.closing {
            bail!("the server closes the stream: {:?}", closing.reason());
        }
        let now = Instant::now();
        for message in answer.messages {
            seen(&message);
            turn = (turn + 1) % inboxes.len();
            inboxes[turn].send((message, now)).await.ok().context("a worker has ended")?;
        }
        while let Ok((request_id, delivered)) = registered.try_recv() {
            waiting.insert(request_id, delivered);
        }
        for command in answer.command_results {
            if let Some(error) = command.error {
                bail!("a settle failed: {}", error.message);
            }
            let Some(delivered) = waiting.remove(&command.request_id) else { continue };
            if let Some(wrong) = command.results.iter().find(|result| result.outcome() != Outcome::Done) {
                bail!("a message that was just delivered was settled as {:?}", wrong.outcome());
            }
            meter.all_done(turn, delivered.iter().map(|delivered| delivered.at));
            for verdict in delivered.into_iter().filter_map(|delivered| delivered.verdict) {
                let _ = verdict.send(());
            }
        }
    }
    bail!("the server ended the stream")
}

//! A client of `Produce`: many callers share a stream, whose frames hold what they have sent at the same time.

use std::collections::HashMap;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::proto::queue_service_client::QueueServiceClient;
use crate::proto::{OutgoingMessage, ProduceRequest, ProduceResponse};

/// The most messages in a frame, and the most bytes of bodies.
const FRAME_MESSAGES: usize = 512;
const FRAME_BYTES: usize = 900 * 1024;

/// How many frames wait for the transport. While they do, the next one grows.
const FRAMES: usize = 4;

type Verdict = Result<i64, String>;
type Waiting = oneshot::Sender<Verdict>;

/// The callers' end of a stream. Clones share it.
#[derive(Clone)]
pub struct Producer {
    sends: mpsc::Sender<(OutgoingMessage, Waiting)>,
}

impl Producer {
    /// Opens a stream for messages to one queue.
    pub async fn open(channel: Channel, queue: &str, body_bytes: usize) -> Result<Producer> {
        let (sends, inbox) = mpsc::channel(8_192);
        let (frames, outgoing) = mpsc::channel(FRAMES);
        let (pending, registered) = mpsc::unbounded_channel();
        let mut client = QueueServiceClient::new(channel);
        let answers = client.produce(ReceiverStream::new(outgoing)).await.context("Produce")?.into_inner();
        let most = FRAME_MESSAGES.min(FRAME_BYTES / body_bytes).max(1);
        tokio::spawn(write(queue.to_owned(), most, inbox, frames, pending));
        tokio::spawn(read(answers, registered));
        Ok(Producer { sends })
    }

    /// Sends a message and waits for its own verdict.
    pub async fn send(&self, message: OutgoingMessage) -> Verdict {
        let (waiting, verdict) = oneshot::channel();
        let ended = || "the stream has ended".to_owned();
        self.sends.send((message, waiting)).await.map_err(|_| ended())?;
        verdict.await.map_err(|_| ended())?
    }
}

/// Puts into a frame what is there, and waits for nothing.
async fn write(
    queue: String,
    most: usize,
    mut inbox: mpsc::Receiver<(OutgoingMessage, Waiting)>,
    frames: mpsc::Sender<ProduceRequest>,
    pending: mpsc::UnboundedSender<(u64, Vec<Waiting>)>,
) {
    let (mut first_sequence, mut gathered) = (0, Vec::with_capacity(most));
    // The place in the transport first: whatever comes until there is one joins the frame.
    while let Ok(place) = frames.reserve().await {
        if inbox.recv_many(&mut gathered, most).await == 0 {
            return;
        }
        let (messages, waiting): (Vec<_>, Vec<_>) = gathered.drain(..).unzip();
        let length = messages.len() as u64;
        if pending.send((first_sequence, waiting)).is_err() {
            return;
        }
        place.send(ProduceRequest { queue: queue.clone(), first_sequence, messages });
        first_sequence += length;
    }
}

/// Gives every caller its verdict.
async fn read(
    mut answers: Streaming<ProduceResponse>,
    mut registered: mpsc::UnboundedReceiver<(u64, Vec<Waiting>)>,
) {
    let mut waiting: HashMap<u64, Vec<Waiting>> = HashMap::new();
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return fail(waiting, &Status::aborted("the server ended the stream")),
            Err(status) => return fail(waiting, &status),
        };
        if answer.msg_ids.is_empty() {
            // The start, a heartbeat, or the announcement of an end.
            continue;
        }
        while let Ok((first, callers)) = registered.try_recv() {
            waiting.insert(first, callers);
        }
        let Some(callers) = waiting.remove(&answer.first_sequence) else { continue };
        let failures: HashMap<i32, String> = answer
            .failures
            .into_iter()
            .map(|failure| (failure.index, failure.error.map(|error| error.message).unwrap_or_default()))
            .collect();
        for (index, (caller, id)) in callers.into_iter().zip(answer.msg_ids).enumerate() {
            let failure = failures.get(&i32::try_from(index).unwrap_or_default()).filter(|_| id == 0);
            let _ = caller.send(failure.map_or(Ok(id), |message| Err(message.clone())));
        }
    }
}

fn fail(waiting: HashMap<u64, Vec<Waiting>>, status: &Status) {
    for caller in waiting.into_values().flatten() {
        let _ = caller.send(Err(status.to_string()));
    }
}

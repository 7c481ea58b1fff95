//! Callers that send over streams, and send again what was not answered and has a deduplication id.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::{OutgoingMessage, ProduceRequest, ProduceResponse};
use rand::Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::senders::group;
use super::worker::{Asked, Worker, verdict_of_reason};
use super::{CONSUMED, DOOMED, FLEETING, GROUPS, KEYED, ORDERS};
use crate::harness::client::outgoing;
use crate::history::record::{Micros, Part, Send, Verdict};

/// One stream of frames, and what was not answered yet.
struct Producer {
    name: String,
    frames: Option<mpsc::Sender<ProduceRequest>>,
    next: u64,
    /// By the first number of the frame: when it was sent, and its messages.
    pending: BTreeMap<u64, (Micros, Vec<Send>)>,
}

/// Sends frames on one stream after the other.
pub(super) async fn by_producing(mut worker: Worker) {
    // What has a key and may be stored, or not.
    let mut again: Vec<Send> = Vec::new();
    let mut streams = 0;
    while worker.pause(200).await {
        streams += 1;
        let (frames, received) = mpsc::channel(4);
        let mut client = worker.client();
        let Ok(answers) = client.produce(ReceiverStream::new(received)).await else { continue };
        let name = format!("stream {streams} of {}", worker.who);
        let mut producer = Producer { name, frames: Some(frames), next: 0, pending: BTreeMap::new() };
        producer.send(&worker, KEYED, std::mem::take(&mut again)).await;
        producer.work(&mut worker, answers.into_inner()).await;
        again = producer.give_up(&worker);
    }
}

impl Producer {
    async fn work(&mut self, worker: &mut Worker, mut answers: Streaming<ProduceResponse>) {
        let until = Instant::now() + worker.millis(4_000);
        while !worker.is_over() && Instant::now() < until {
            let pause = worker.millis(150);
            match tokio::time::timeout(pause, answers.message()).await {
                Ok(Ok(Some(answer))) => {
                    let closing = answer.closing.is_some();
                    self.take(worker, answer);
                    if closing {
                        break;
                    }
                }
                Ok(_) => return,
                Err(_) => {
                    let (queue, sends) = frame(worker);
                    self.send(worker, queue, sends).await;
                }
            }
        }
        if worker.chance(25) {
            worker.disconnect();
            return;
        }
        // A side that is closed gets all its answers.
        self.frames = None;
        while let Ok(Ok(Some(answer))) =
            tokio::time::timeout(Duration::from_secs(20), answers.message()).await
        {
            self.take(worker, answer);
        }
    }

    async fn send(&mut self, worker: &Worker, queue: &str, mut sends: Vec<Send>) {
        if sends.is_empty() {
            return;
        }
        let first_sequence = self.next;
        for send in &mut sends {
            send.place = Some((self.name.clone(), self.next));
            self.next += 1;
        }
        let messages = sends.iter().map(|send| OutgoingMessage {
            group: send.group.clone().unwrap_or_default(),
            deduplication_id: send.key.clone().unwrap_or_default(),
            ..outgoing(&send.body)
        });
        let request =
            ProduceRequest { queue: queue.to_owned(), first_sequence, messages: messages.collect() };
        self.pending.insert(first_sequence, (worker.run.now(), sends));
        if let Some(frames) = &self.frames {
            // A stream that has ended takes none, and its end is seen where it is read. A stream that stalls is seen there too.
            let _ = tokio::time::timeout(Duration::from_secs(5), frames.send(request)).await;
        }
    }

    /// Writes down the verdicts of one frame.
    fn take(&mut self, worker: &Worker, answer: ProduceResponse) {
        if answer.msg_ids.is_empty() {
            return;
        }
        let (asked, sends) =
            self.pending.remove(&answer.first_sequence).expect("an answer to a frame, and one only");
        assert_eq!(sends.len(), answer.msg_ids.len(), "a verdict for each message");
        for (index, (mut send, &msg_id)) in (0..).zip(sends.into_iter().zip(&answer.msg_ids)) {
            let failure = answer.failures.iter().find(|failure| failure.index == index);
            let verdict = match failure.and_then(|failure| failure.error.as_ref()) {
                Some(error) => {
                    let reason = error.reason().as_str_name().trim_start_matches("ERROR_REASON_");
                    verdict_of_reason(reason, false)
                }
                None => {
                    send.msg_id = Some(msg_id);
                    send.deduplicated = answer.deduplicated.contains(&index);
                    Verdict::Done
                }
            };
            worker.record(Asked::new("Produce", vec![Part::Send(send)]), asked, verdict);
        }
    }

    /// Writes down what was not answered, and gives what may be sent again.
    fn give_up(self, worker: &Worker) -> Vec<Send> {
        let mut again = Vec::new();
        for (asked, sends) in self.pending.into_values() {
            for send in sends {
                if send.key.is_some() {
                    again.push(send.clone());
                }
                let call = Asked::new("Produce", vec![Part::Send(send)]);
                worker.record(call, asked, Verdict::Unknown("no answer".to_owned()));
            }
        }
        again
    }
}

/// A frame's queue and its messages.
fn frame(worker: &mut Worker) -> (&'static str, Vec<Send>) {
    let queue = [KEYED, KEYED, CONSUMED, GROUPS, ORDERS, FLEETING][worker.random.random_range(0..6)];
    let count = worker.random.random_range(1..6);
    let mut sends = Vec::new();
    for _ in 0..count {
        let mut send = Send { queue: queue.to_owned(), body: worker.body(), ..Send::default() };
        if queue == GROUPS {
            send.group = Some(group(worker));
        } else if queue == KEYED {
            let (key, body) = worker.key(KEYED);
            (send.key, send.body) = (Some(key), body);
        } else if queue == FLEETING {
            send.body = worker.long_body();
        } else if queue == ORDERS && worker.chance(5) {
            send.body = format!("\"{DOOMED} {}", send.body.trim_start_matches('"'));
            send.doomed = true;
        }
        sends.push(send);
    }
    (queue, sends)
}

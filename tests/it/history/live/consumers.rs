//! Callers that read and settle over one stream.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::consume_request::Command;
use pgmq_grpc::proto::v1::{
    ClientHeartbeat, CommandResult, ConsumeRequest, ConsumeResponse, ConsumeStart, Credit, Extend,
    FlowControl, Message, Settle, SettleAction, Stop,
};
use rand::Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::readers::{answer, leave_to_policy, ordering, reading, receipts, settles};
use super::worker::{Asked, Worker, delivery, verdict, verdict_of_reason};
use super::{CONSUMED, GROUPS, KEYED, ORDERS, WORN};
use crate::harness::seconds;
use crate::history::record::{Action, Micros, Part, Read, Verdict};

/// One stream, from its client's side.
struct Consumer {
    queue: &'static str,
    commands: Option<mpsc::UnboundedSender<ConsumeRequest>>,
    next: u64,
    /// Settles and extends that were not answered yet.
    pending: HashMap<u64, (Micros, Asked)>,
    read: Read,
    /// What may still come, under manual flow control.
    credit: Option<i32>,
    closing: bool,
    stopped: bool,
}

/// How a stream is to end.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// `stop`, then the answers to all commands, then the end of the commands.
    Stop,
    /// The end of the commands.
    Close,
    Leave,
}

/// Follows queues by streams, each for a while.
pub(super) async fn by_consuming(mut worker: Worker) {
    while worker.pause(200).await {
        let queues = [CONSUMED, CONSUMED, KEYED, KEYED, GROUPS, ORDERS, WORN];
        let queue = queues[worker.random.random_range(0..queues.len())];
        let (commands, received) = mpsc::unbounded_channel();
        let is_manual = worker.chance(30);
        let auto_extend = worker.chance(50);
        let by_policy = queue == WORN && worker.chance(50);
        let start = ConsumeStart {
            queue: queue.to_owned(),
            visibility_timeout: seconds(f64::from(worker.random.random_range(1..4))).filter(|_| !by_policy),
            ordering: ordering(&mut worker, queue),
            max_in_flight: if is_manual { 0 } else { worker.random.random_range(1..60) },
            heartbeat_interval: seconds(1.0),
            flow_control: if is_manual { FlowControl::Manual } else { FlowControl::Automatic }.into(),
            auto_extend,
            max_extension: seconds(4.0).filter(|_| auto_extend),
            ..Default::default()
        };
        let read = Read { stream: true, takes_any: false, extends: auto_extend, by_policy, ..reading(queue) };
        let mut consumer = Consumer {
            queue,
            commands: Some(commands),
            next: 1,
            pending: HashMap::new(),
            read,
            credit: is_manual.then_some(0),
            closing: false,
            stopped: false,
        };
        consumer.send(Command::Start(start));
        let asked = worker.run.now();
        let mut client = worker.client();
        let result = match client.consume(UnboundedReceiverStream::new(received)).await {
            Err(status) => verdict(&status, false),
            Ok(replies) => consumer.work(&mut worker, replies.into_inner()).await,
        };
        consumer.end(&worker, asked, result);
    }
}

impl Consumer {
    fn send(&mut self, command: Command) -> u64 {
        let request_id = self.next;
        self.next += 1;
        if let Some(commands) = &self.commands {
            // A stream that has ended takes none, and its end is seen where it is read.
            let _ = commands.send(ConsumeRequest { request_id, command: Some(command) });
        }
        request_id
    }

    /// Receives and settles until the stream has ended, or its client has gone.
    async fn work(&mut self, worker: &mut Worker, mut replies: Streaming<ConsumeResponse>) -> Verdict {
        let until = Instant::now() + worker.millis(4_000);
        let end = match worker.random.random_range(0..100) {
            0..60 => End::Stop,
            60..80 => End::Close,
            _ => End::Leave,
        };
        let mut is_ending = false;
        loop {
            if !is_ending && (worker.is_over() || Instant::now() > until) {
                is_ending = true;
                match end {
                    End::Stop => drop(self.send(Command::Stop(Stop {}))),
                    End::Close => self.commands = None,
                    End::Leave => return Verdict::Unknown("left".to_owned()),
                }
            }
            if self.stopped && self.pending.is_empty() {
                self.commands = None;
            }
            if Instant::now() > until + Duration::from_secs(30) {
                return Verdict::Unknown("no end".to_owned());
            }
            self.give_credit(worker);
            match tokio::time::timeout(Duration::from_millis(200), replies.message()).await {
                Err(_) => drop(self.send(Command::Heartbeat(ClientHeartbeat {}))),
                Ok(Ok(Some(reply))) => self.take(worker, reply).await,
                Ok(Ok(None)) => return Verdict::Done,
                Ok(Err(status)) => return verdict(&status, false),
            }
        }
    }

    fn give_credit(&mut self, worker: &mut Worker) {
        let Some(credit) = self.credit.filter(|&credit| credit < 3) else { return };
        let more = worker.random.random_range(1..20);
        self.credit = Some(credit + more);
        self.send(Command::Credit(Credit { messages: more }));
    }

    async fn take(&mut self, worker: &mut Worker, reply: ConsumeResponse) {
        let now = worker.run.now();
        self.closing |= reply.closing.is_some();
        assert!(reply.messages.is_empty() || !self.stopped, "a message after stopped");
        if let Some(credit) = &mut self.credit {
            *credit -= i32::try_from(reply.messages.len()).expect("a small batch");
            assert!(*credit >= 0, "{} more messages than credit", -*credit);
        }
        self.stopped |= reply.stopped.is_some();
        self.read.deliveries.extend(reply.messages.iter().map(|message| delivery(message, now)));
        for result in reply.command_results {
            self.conclude(worker, result);
        }
        self.settle(worker, reply.messages);
        if worker.chance(3) {
            // A client that takes nothing for a while: what waits for it goes to others.
            worker.goes_on(Duration::from_millis(1_500)).await;
        }
    }

    /// Writes down the answer to a command.
    fn conclude(&mut self, worker: &Worker, result: CommandResult) {
        let answered = self.pending.remove(&result.request_id);
        let (asked, mut call) = answered.expect("one answer to each settle and extend");
        let verdict = match &result.error {
            None => {
                assert_eq!(call.parts.len(), result.results.len(), "a result for each receipt");
                answer(&mut call.parts, &result.results);
                Verdict::Done
            }
            Some(error) => {
                verdict_of_reason(error.reason().as_str_name().trim_start_matches("ERROR_REASON_"), true)
            }
        };
        worker.record(call, asked, verdict);
    }

    fn settle(&mut self, worker: &mut Worker, messages: Vec<Message>) {
        let mut piles: [Vec<Message>; 6] = Default::default();
        for message in messages {
            let pile = match worker.random.random_range(0..100) {
                0..65 => 0,
                65..75 => 1,
                75..82 => 2,
                82..88 => 3,
                88..94 => 4,
                _ => 5,
            };
            piles[pile].push(message);
        }
        let [deleted, archived, released, given_back, extended, _forgotten] = piles;
        let delay = seconds(worker.millis(800).as_secs_f64()).filter(|_| worker.chance(60));
        let span = seconds(worker.millis(3_000).as_secs_f64() + 0.1);
        let aside = if self.queue == WORN { SettleAction::DeadLetter } else { SettleAction::Archive };
        for (messages, action) in [
            (deleted, SettleAction::Delete),
            (archived, aside),
            (released, SettleAction::Release),
            (given_back, SettleAction::GiveBack),
        ] {
            let delay = delay.filter(|_| action == SettleAction::Release);
            let settle =
                Settle { receipts: receipts(&messages), action: action.into(), delay, reason: String::new() };
            let action = match action {
                SettleAction::Delete => Action::Delete,
                SettleAction::Archive => Action::Archive,
                SettleAction::DeadLetter => Action::DeadLetter,
                SettleAction::GiveBack => Action::GiveBack,
                _ => Action::Hide,
            };
            self.command(worker, "Settle", action, &messages, Command::Settle(settle));
        }
        let extend = Extend { receipts: receipts(&extended), visibility_timeout: span };
        self.command(worker, "Extend", Action::Extend, &extended, Command::Extend(extend));
    }

    fn command(
        &mut self,
        worker: &Worker,
        what: &'static str,
        action: Action,
        messages: &[Message],
        command: Command,
    ) {
        if messages.is_empty() || self.commands.is_none() {
            return;
        }
        let mut call = Asked::new(what, settles(self.queue, action, messages, false));
        if action == Action::Hide && matches!(command, Command::Settle(Settle { delay: None, .. })) {
            leave_to_policy(&mut call.parts);
        }
        let asked = worker.run.now();
        let request_id = self.send(command);
        self.pending.insert(request_id, (asked, call));
    }

    /// Writes down the stream, and what was not answered.
    fn end(mut self, worker: &Worker, asked: Micros, result: Verdict) {
        for (asked, call) in std::mem::take(&mut self.pending).into_values() {
            // What comes when the grace of a closing stream is over is not read any more.
            let may_end = self.closing || result != Verdict::Done;
            assert!(may_end, "a stream ended well and left a command without an answer");
            worker.record(call, asked, Verdict::Unknown("no answer".to_owned()));
        }
        // A stream that ends with an error has delivered all the same.
        let result = match result {
            Verdict::Refused(why) if !self.read.deliveries.is_empty() => Verdict::Unknown(why),
            result => result,
        };
        worker.record(Asked::new("Consume", vec![Part::Read(self.read)]), asked, result);
    }
}

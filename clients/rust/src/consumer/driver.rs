//! The task behind a consumer: it keeps a Consume stream open, and settles over it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{StreamExt as _, iter, poll_fn};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::Streaming;

use super::{Untaken, lock};
use crate::pb::{
    ConsumeRequest, ConsumeResponse, ConsumeStart, ItemResult, Message, Outcome, consume_request,
};
use crate::settle::Settlement;
use crate::time::{Pauses, duration, in_time, span};
use crate::{Client, Error};

/// What a consumer and its messages want of the driver.
#[derive(Debug)]
pub(super) enum Command {
    Settle(Order),
    /// A message was dropped unsettled.
    Dropped(String),
    Stop,
    /// The client is closed: as stop, and nobody takes what is there.
    Close,
}

/// One message to be settled or extended.
#[derive(Debug)]
pub(super) struct Order {
    receipt: String,
    settlement: Settlement,
    reply: Option<oneshot::Sender<Result<Vec<ItemResult>, Error>>>,
    /// Until when it is tried again.
    expires: Instant,
    /// Whether it has failed together with others, and perhaps only because of them.
    again: bool,
}

impl Order {
    /// One that is answered, and tried until the limit.
    pub(super) fn asked(
        receipt: String,
        settlement: Settlement,
        limit: Duration,
    ) -> (Self, oneshot::Receiver<Result<Vec<ItemResult>, Error>>) {
        let (reply, answer) = oneshot::channel();
        let expires = in_time(limit);
        (Self { receipt, settlement, reply: Some(reply), expires, again: false }, answer)
    }

    /// One of the driver's own.
    fn unasked(receipt: String, settlement: Settlement) -> Self {
        Self { receipt, settlement, reply: None, expires: Instant::now(), again: false }
    }

    /// Once more, alone.
    fn alone(self) -> Self {
        Self { again: true, ..self }
    }

    fn answer(self, mut result: Result<ItemResult, Error>) {
        if let Ok(result) = &mut result
            && self.again
            && self.settlement.ends()
            && result.outcome() == Outcome::NotFound
        {
            // The message is gone, most likely by the first attempt.
            result.set_outcome(Outcome::Done);
        }
        if let Some(reply) = self.reply {
            // Whoever asked may have gone.
            let _ = reply.send(result.map(|result| vec![result]));
        }
    }
}

/// The most receipts of a command.
const MAX_RECEIPTS: usize = 1000;

/// The most calls at a time by which messages are settled one by one.
const MAX_CALLS: usize = 50;

/// How long a stream may take to be confirmed, and how long the server extends without being told otherwise.
const OPENING: Duration = Duration::from_secs(30);
const DEFAULT_EXTENSION: Duration = Duration::from_secs(3600);

pub(super) struct Driver {
    client: Client,
    start: ConsumeStart,
    /// Where messages go. Nothing once no more are to come.
    deliver: Option<mpsc::UnboundedSender<Result<Message, Error>>>,
    /// The other end.
    untaken: Untaken,
    commands: mpsc::UnboundedReceiver<Command>,
    /// For what goes back into `commands`, without keeping the driver alive.
    link: mpsc::WeakUnboundedSender<Command>,
    in_hand: HashMap<String, InHand>,
    /// Messages that wait until fewer are in hand: after a stream broke, the next one begins with an empty window.
    held: VecDeque<Message>,
    stopping: bool,
    closing: bool,
    has_retry_backoff: Arc<AtomicBool>,
    stream_number: u64,
    visibility_timeout: Duration,
    max_in_flight: usize,
}

/// An unsettled message that came over some stream.
struct InHand {
    stream_number: u64,
    /// When the server takes it back, as far as the client knows.
    expires: Instant,
}

/// Why a stream ended.
enum End {
    /// Open it again, not before the delay that the server asks for.
    Again(Option<Duration>, Option<Error>),
    Failed(Error),
    Stopped,
}

/// An open stream.
struct Open {
    requests: Option<mpsc::UnboundedSender<ConsumeRequest>>,
    pending: HashMap<u64, Vec<Order>>,
    next_request_id: u64,
    heartbeat_interval: Duration,
    heard: Instant,
    spoken: Instant,
    extended: Instant,
    closing: Option<Option<Duration>>,
    stopped: bool,
}

impl Driver {
    pub(super) fn new(
        client: Client,
        start: ConsumeStart,
        deliver: mpsc::UnboundedSender<Result<Message, Error>>,
        untaken: Untaken,
        commands: mpsc::UnboundedReceiver<Command>,
        link: mpsc::WeakUnboundedSender<Command>,
        has_retry_backoff: Arc<AtomicBool>,
    ) -> Self {
        Self {
            client,
            start,
            deliver: Some(deliver),
            untaken,
            commands,
            link,
            in_hand: HashMap::new(),
            held: VecDeque::new(),
            stopping: false,
            closing: false,
            has_retry_backoff,
            stream_number: 0,
            visibility_timeout: Duration::from_secs(30),
            max_in_flight: MAX_RECEIPTS,
        }
    }

    pub(super) async fn run_until_closed(self) {
        let (life, link) = (self.client.inner.life.clone(), self.link.clone());
        let run = self.run();
        tokio::pin!(run);
        tokio::select! {
            () = &mut run => return,
            () = life.ends() => {}
        }
        if let Some(commands) = link.upgrade() {
            // A driver that is gone has ended.
            let _ = commands.send(Command::Close);
        }
        run.await;
    }

    async fn run(mut self) {
        let under_way = self.client.inner.life.streams.begin();
        let mut pauses = Pauses::up_to(Duration::from_secs(5));
        while !self.stopping {
            match self.stream(&mut pauses).await {
                End::Again(asked, error) => {
                    let pause = pauses.next(asked);
                    let queue = &self.start.queue;
                    tracing::debug!(
                        queue,
                        ?pause,
                        error = error.map(tracing::field::display),
                        "a consumer opens again"
                    );
                    self.pause(pause).await;
                }
                End::Failed(error) => {
                    tracing::debug!(queue = self.start.queue, %error, "a consumer has ended");
                    if let Some(deliver) = self.deliver.take() {
                        let _ = deliver.send(Err(error));
                    }
                    break;
                }
                End::Stopped => break,
            }
        }
        let untaken = self.end_delivery();
        self.by_unary_call(untaken, None);
        drop(under_way);
        while let Some(command) = self.commands.recv().await {
            self.without_stream(command);
        }
    }

    /// Waits, and settles meanwhile.
    async fn pause(&mut self, pause: Duration) {
        let pause = sleep(pause);
        tokio::pin!(pause);
        while !self.stopping {
            tokio::select! {
                () = &mut pause => return,
                command = self.commands.recv() => match command {
                    Some(command) => self.without_stream(command),
                    None => self.stopping = true,
                },
            }
        }
    }

    /// Opens a stream and serves it until it ends.
    async fn stream(&mut self, pauses: &mut Pauses) -> End {
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let start = consume_request::Command::Start(self.start.clone());
        let _ = requests.send(ConsumeRequest { request_id: 0, command: Some(start) });
        let mut stub = self.client.raw().queues;
        let opening = timeout(OPENING, async move {
            stub.consume(poll_fn(move |context| outgoing.poll_recv(context))).await
        });
        tokio::pin!(opening);
        let mut responses = loop {
            tokio::select! {
                opened = &mut opening => match opened {
                    Ok(Ok(response)) => break response.into_inner(),
                    Ok(Err(status)) => return end(status.into()),
                    Err(_) => return End::Again(None, Some(Error::deadline_exceeded())),
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.without_stream(command),
                    None => return End::Stopped,
                },
            }
            if self.stopping {
                return End::Stopped;
            }
        };
        self.stream_number += 1;
        let now = Instant::now();
        let mut open = Open {
            requests: Some(requests),
            pending: HashMap::new(),
            next_request_id: 1,
            heartbeat_interval: OPENING / 2,
            heard: now,
            spoken: now,
            extended: now,
            closing: None,
            stopped: false,
        };
        let end = self.serve(&mut open, &mut responses, pauses).await;
        // Receipts outlive their stream, and each of these commands can be given twice.
        for orders in open.pending.into_values() {
            self.by_unary_call(orders, None);
        }
        end
    }

    async fn serve(
        &mut self,
        open: &mut Open,
        responses: &mut Streaming<ConsumeResponse>,
        pauses: &mut Pauses,
    ) -> End {
        let mut ticks = interval(Duration::from_millis(500));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = Vec::new();
        let mut abandoned = false;
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => self.response(open, response, pauses),
                    Ok(None) if self.stopping => return End::Stopped,
                    Ok(None) => return End::Again(open.closing.flatten(), None),
                    Err(_) if self.stopping => return End::Stopped,
                    Err(status) => return end(status.into()),
                },
                count = self.commands.recv_many(&mut commands, MAX_RECEIPTS), if !abandoned => {
                    abandoned = count == 0;
                    self.commands(open, commands.drain(..));
                }
                _ = ticks.tick() => {
                    if open.heard.elapsed() > 2 * open.heartbeat_interval {
                        return End::Again(None, Some(Error::broken("the stream was silent for too long")));
                    }
                    self.tick(open);
                }
            }
            self.hand_out();
            // All that there was to say is said: the answers still come.
            let nothing_follows = open.stopped && (self.closing || self.in_hand.is_empty());
            if abandoned || self.stopping && nothing_follows {
                open.requests = None;
            }
        }
    }

    fn response(&mut self, open: &mut Open, response: ConsumeResponse, pauses: &mut Pauses) {
        open.heard = Instant::now();
        if let Some(started) = response.started {
            pauses.reset();
            tracing::debug!(
                queue = self.start.queue,
                stream = started.stream_id,
                "a consumer's stream is open"
            );
            self.visibility_timeout = duration(started.visibility_timeout).unwrap_or(self.visibility_timeout);
            self.max_in_flight = usize::try_from(started.max_in_flight).unwrap_or(MAX_RECEIPTS);
            open.heartbeat_interval = duration(started.heartbeat_interval).unwrap_or(open.heartbeat_interval);
            self.has_retry_backoff.store(started.has_retry_backoff, Relaxed);
            self.extend_carried(open);
        }
        let kept = match self.start.auto_extend {
            true => duration(self.start.max_extension).unwrap_or(DEFAULT_EXTENSION),
            false => self.visibility_timeout,
        };
        for message in response.messages {
            let in_hand = InHand { stream_number: self.stream_number, expires: in_time(kept) };
            self.in_hand.insert(message.receipt.clone(), in_hand);
            self.held.push_back(message);
        }
        for result in response.command_results {
            let Some(orders) = open.pending.remove(&result.request_id) else { continue };
            match result.error.map(Error::from) {
                None => self.answer(orders, result.results),
                // The unary call tries again.
                Some(error) if error.is_unavailable() => self.by_unary_call(orders, error.retry_delay()),
                // One message's refusal is not that of those which only shared its command.
                Some(error) if error.may_be_of_one() && orders.len() > 1 => {
                    orders.into_iter().for_each(|order| self.settle(open, vec![order.alone()]));
                }
                Some(error) => orders.into_iter().for_each(|order| order.answer(Err(error.clone()))),
            }
        }
        if let Some(closing) = response.closing {
            open.closing = Some(duration(closing.retry_delay));
        }
        if response.stopped.is_some() {
            open.stopped = true;
            let untaken = self.end_delivery();
            self.settle(open, untaken);
        }
    }

    fn answer(&mut self, orders: Vec<Order>, results: Vec<ItemResult>) {
        for (order, result) in orders.into_iter().zip(results) {
            if order.settlement.ends() || result.outcome() != Outcome::Done {
                self.in_hand.remove(&order.receipt);
            }
            order.answer(Ok(result));
        }
    }

    fn commands(&mut self, open: &mut Open, commands: impl Iterator<Item = Command>) {
        let mut run: Vec<Order> = Vec::new();
        for command in commands {
            let order = match command {
                Command::Stop | Command::Close => {
                    if !std::mem::replace(&mut self.stopping, true) {
                        open.send(0, consume_request::Command::Stop(crate::pb::Stop {}));
                    }
                    if matches!(command, Command::Close) {
                        let untaken = self.close();
                        self.settle(open, untaken);
                    }
                    continue;
                }
                Command::Dropped(receipt) => match self.dropped(receipt) {
                    Some(order) => order,
                    None => continue,
                },
                Command::Settle(order) => {
                    self.note_extension(&order);
                    order
                }
            };
            if run.first().is_some_and(|first| first.settlement != order.settlement) {
                self.settle(open, std::mem::take(&mut run));
            }
            run.push(order);
        }
        self.settle(open, run);
    }

    /// Gives orders of one kind as one command.
    fn settle(&mut self, open: &mut Open, orders: Vec<Order>) {
        let Some(first) = orders.first() else { return };
        if open.requests.is_none() {
            return self.by_unary_call(orders, None);
        }
        let receipts = orders.iter().map(|order| order.receipt.clone()).collect();
        let request_id = open.next_request_id;
        open.next_request_id += 1;
        open.send(request_id, first.settlement.command(receipts));
        open.pending.insert(request_id, orders);
    }

    fn note_extension(&mut self, order: &Order) {
        let Settlement::Extend(visibility_timeout) = &order.settlement else { return };
        if let Some(in_hand) = self.in_hand.get_mut(&order.receipt) {
            let until = in_time(duration(*visibility_timeout).unwrap_or(self.visibility_timeout));
            in_hand.expires = in_hand.expires.max(until);
        }
    }

    /// A message that nobody will settle comes back after one more visibility timeout. Only a command ends the extension by the
    /// server.
    fn dropped(&mut self, receipt: String) -> Option<Order> {
        let in_hand = self.in_hand.remove(&receipt)?;
        let extended = self.start.auto_extend && in_hand.stream_number == self.stream_number;
        extended.then(|| Order::unasked(receipt, Settlement::release(Some(self.visibility_timeout))))
    }

    fn tick(&mut self, open: &mut Open) {
        let now = Instant::now();
        self.in_hand.retain(|_, in_hand| in_hand.expires > now);
        if open.spoken.elapsed() >= open.heartbeat_interval {
            open.send(0, consume_request::Command::Heartbeat(crate::pb::ClientHeartbeat {}));
        }
        if open.extended.elapsed() >= self.visibility_timeout / 2 {
            self.extend_carried(open);
        }
    }

    /// Extends messages that came over an earlier stream, of which the server of this one does not know.
    fn extend_carried(&mut self, open: &mut Open) {
        open.extended = Instant::now();
        if !self.start.auto_extend {
            return;
        }
        let carried = self.in_hand.iter().filter(|(_, in_hand)| in_hand.stream_number < self.stream_number);
        let longer = Settlement::Extend(Some(span(self.visibility_timeout)));
        let mut orders: Vec<Order> =
            carried.map(|(receipt, _)| Order::unasked(receipt.clone(), longer.clone())).collect();
        while !orders.is_empty() {
            let rest = orders.split_off(orders.len().min(MAX_RECEIPTS));
            self.settle(open, orders);
            orders = rest;
        }
    }

    /// Hands messages to the consumer. The server keeps to the window of its stream; only while messages of an earlier one are
    /// in hand too, there can be too many.
    fn hand_out(&mut self) {
        let Some(deliver) = &self.deliver else { return };
        let carried = self.in_hand.values().any(|in_hand| in_hand.stream_number < self.stream_number);
        while !carried || self.in_hand.len().saturating_sub(self.held.len()) < self.max_in_flight {
            let Some(message) = self.held.pop_front() else { return };
            // A consumer that is gone has sent a stop, after which these are given back.
            if let Err(unsent) = deliver.send(Ok(message)) {
                self.held.extend(unsent.0.ok());
                return;
            }
        }
    }

    /// Nobody takes a message any more, not even to give it back.
    fn close(&mut self) -> Vec<Order> {
        self.closing = true;
        self.deliver = None;
        let mut untaken = Vec::new();
        {
            let mut messages = lock(&self.untaken);
            while let Ok(message) = messages.try_recv() {
                untaken.extend(message);
            }
        }
        // Before those that are held, which came later.
        untaken.into_iter().rev().for_each(|message| self.held.push_front(message));
        self.end_delivery()
    }

    /// No message follows. Those that are held go to the consumer, which gives them back if it is stopped or gone.
    /// What nobody takes any more is to be given back.
    fn end_delivery(&mut self) -> Vec<Order> {
        let deliver = self.deliver.take();
        let mut untaken = Vec::new();
        for message in std::mem::take(&mut self.held) {
            let receipt = message.receipt.clone();
            if deliver.as_ref().is_some_and(|deliver| deliver.send(Ok(message)).is_ok()) {
                continue;
            }
            self.in_hand.remove(&receipt);
            untaken.push(Order::unasked(receipt, Settlement::give_back()));
        }
        untaken
    }

    fn without_stream(&mut self, command: Command) {
        match command {
            Command::Settle(order) => {
                self.note_extension(&order);
                self.by_unary_call(vec![order], None);
            }
            // Without a stream nobody extends it any more.
            Command::Dropped(receipt) => drop(self.in_hand.remove(&receipt)),
            Command::Stop => self.stopping = true,
            Command::Close => {
                self.stopping = true;
                let untaken = self.close();
                self.by_unary_call(untaken, None);
            }
        }
    }

    /// Settles without the stream, after the pause that the server asks for.
    fn by_unary_call(&mut self, orders: Vec<Order>, asked: Option<Duration>) {
        for order in orders.iter().filter(|order| order.settlement.ends()) {
            self.in_hand.remove(&order.receipt);
        }
        let (client, queue) = (self.client.clone(), self.start.queue.clone());
        let under_way = client.inner.life.streams.begin();
        let settling = by_unary_call(client, queue, self.link.upgrade(), orders);
        tokio::spawn(async move {
            if let Some(asked) = asked {
                sleep(asked).await;
            }
            settling.await;
            drop(under_way);
        });
    }
}

/// Settles orders of one kind without the stream. What cannot be done now goes back to the driver, which may have a stream
/// then.
fn by_unary_call(
    client: Client,
    queue: String,
    link: Option<mpsc::UnboundedSender<Command>>,
    orders: Vec<Order>,
) -> BoxFuture<'static, ()> {
    async move {
        let Some(settlement) = orders.first().map(|first| first.settlement.clone()) else { return };
        let receipts = orders.iter().map(|order| order.receipt.clone()).collect();
        let error = match settlement.unary(&client, &queue, receipts).await {
            Ok(results) => {
                return orders.into_iter().zip(results).for_each(|(order, result)| order.answer(Ok(result)));
            }
            Err(error) => error,
        };
        if error.may_be_of_one() && orders.len() > 1 {
            let alone = |order: Order| {
                by_unary_call(client.clone(), queue.clone(), link.clone(), vec![order.alone()])
            };
            return iter(orders).for_each_concurrent(MAX_CALLS, alone).await;
        }
        let pause = error.retry_delay().unwrap_or_default();
        let until = Instant::now() + pause;
        let link = link.filter(|_| error.is_unavailable());
        let (again, over): (Vec<_>, Vec<_>) =
            orders.into_iter().partition(|order| link.is_some() && order.expires > until);
        over.into_iter().for_each(|order| order.answer(Err(error.clone())));
        if let Some(link) = link.filter(|_| !again.is_empty()) {
            sleep(pause).await;
            for order in again {
                let _ = link.send(Command::Settle(order));
            }
        }
    }
    .boxed()
}

impl Open {
    fn send(&mut self, request_id: u64, command: consume_request::Command) {
        self.spoken = Instant::now();
        if let Some(requests) = &self.requests {
            // A stream that has broken says so by its responses.
            let _ = requests.send(ConsumeRequest { request_id, command: Some(command) });
        }
    }
}

fn end(error: Error) -> End {
    if error.is_final() {
        return End::Failed(error);
    }
    End::Again(error.retry_delay(), Some(error))
}

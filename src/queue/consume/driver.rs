//! The task of a stream: between its client's commands, its messages, its settles and the clock.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::extends::Extends;
use super::machine::{Input, Machine, Phase, Reaction};
use super::outbox::{Closing, Outbox};
use super::settles::{Bundle, Locked, Sender, Settles};
use super::{Command, CommandResult, ConsumeOptions, FlowControl, Settle, Started};
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::{Caller, ClientRole, Deadline, Error, Kind, Receipt, Result, Settlement};
use crate::engine::{Handover, OpenStream, Presence, QueueEvents, StreamKind, Subscription, Window};
use crate::queue::stream::{
    ClosingReason, PIECE_BYTES, WINDOW_CHECK, check_readable, end_of_life, retry_delay,
};
use crate::queue::{Broker, Change, Targets, Told};

/// How long a client may take to send `start`.
const START_TIME: Duration = Duration::from_secs(30);

/// The most commands that wait for their results to be taken, and the most receipts of them.
const MAX_COMMANDS: usize = 1_000;
const MAX_RECEIPTS: usize = 10_000;

/// The most messages that a client holds whose flow control is its own.
const MAX_HELD: usize = 10_000;

/// Runs a stream to its end.
pub(super) async fn run<C>(
    broker: Arc<Broker>,
    caller: Caller,
    mut commands: C,
    outbox: Arc<Outbox>,
    deadline: Deadline,
) where
    C: Stream<Item = Result<Command>> + Send + Unpin,
{
    let end = match open(&broker, &caller, &mut commands, &outbox, deadline).await {
        Ok(Some(mut consumer)) => consumer.run(&mut commands).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    outbox.end(end);
}

/// Waits for `start` and does what it says; nothing if the client left before.
async fn open<C>(
    broker: &Arc<Broker>,
    caller: &Caller,
    commands: &mut C,
    outbox: &Arc<Outbox>,
    deadline: Deadline,
) -> Result<Option<Consumer>>
where
    C: Stream<Item = Result<Command>> + Send + Unpin,
{
    let mut machine = Machine::new();
    let mut options = None;
    let reaction = tokio::select! {
        biased;
        command = commands.next() => match command {
            None => machine.on(Input::HalfClose),
            Some(Err(error)) => machine.fail(error),
            Some(Ok(Command::Start(start))) => match *start {
                Ok(start) => {
                    let flow = start.flow_control;
                    options = Some(start);
                    machine.on(Input::Start(flow))
                }
                Err(error) => machine.fail(error),
            },
            Some(Ok(other)) => machine.on(input_of(&other)),
        },
        () = outbox.changed() => machine.on(Input::HalfClose),
        () = broker.drain.cancelled() => machine.on(Input::Close),
        () = sleep_until(deadline.instant()) => machine.fail(Error::deadline_exceeded()),
        () = sleep(START_TIME) => machine.on(Input::GraceOver),
    };
    match (reaction, options) {
        (Reaction::Open, Some(options)) => {
            Consumer::open(broker, caller, outbox, machine, options, deadline).await.map(Some)
        }
        _ => machine.end(0, 0).unwrap_or(Ok(())).map(|()| None),
    }
}

fn input_of(command: &Command) -> Input {
    match command {
        Command::Start(_) => Input::Start(FlowControl::Automatic),
        Command::Settle { .. } => Input::Settle,
        Command::Credit(credit) => Input::Credit(*credit.as_ref().unwrap_or(&0)),
        Command::Stop => Input::Stop,
        Command::Heartbeat => Input::Heartbeat,
        Command::Unknown => Input::Unknown,
    }
}

/// What comes back from the database.
enum Done {
    /// A bundle, what is told of it, and when it was sent.
    Settled(Bundle, Result<Told>, Instant),
    /// A command of whose messages others had locked some, and since when it waited for them.
    Unlocked(Locked, Result<Vec<ItemResult>>, Instant),
    /// A look at what the client still holds.
    Looked(Result<()>),
}

/// A stream that was started.
struct Consumer {
    broker: Arc<Broker>,
    outbox: Arc<Outbox>,
    machine: Machine,
    options: ConsumeOptions,
    deadline: Deadline,
    ends: Option<Instant>,
    grace_ends: Option<Instant>,
    subscription: Option<Subscription>,
    asked: usize,
    window: Arc<Window>,
    presence: Presence,
    _followed: Arc<QueueEvents>,
    _open: OpenStream,
    looking: bool,
    /// The last look failed: the next one is not hurried.
    look_failed: bool,
    next_look: Instant,
    settles: Settles,
    extends: Option<Extends>,
    working: FuturesUnordered<BoxFuture<'static, Done>>,
    timer: Pin<Box<Sleep>>,
}

impl Consumer {
    async fn open(
        broker: &Arc<Broker>,
        caller: &Caller,
        outbox: &Arc<Outbox>,
        machine: Machine,
        options: ConsumeOptions,
        deadline: Deadline,
    ) -> Result<Self> {
        let order = &options.order;
        let queue = check_readable(broker, order, deadline).await?;
        let max_in_flight = match options.flow_control {
            FlowControl::Automatic => options.max_in_flight,
            FlowControl::Manual => MAX_HELD,
        };
        let window = Arc::new(Window::new(max_in_flight));
        let followed = broker.events.follow(&order.queue);
        followed.add_window(&window);
        let subscription = broker.dispatch.subscribe(order, queue.created_at, PIECE_BYTES)?;
        let visibility_timeout = order.visibility_timeout.span();
        let heartbeat_interval = options.heartbeat_interval;
        let has_retry_backoff = broker.has_retry_backoff(&order.queue);
        outbox.put(|piece| {
            piece.started =
                Some(Started { visibility_timeout, max_in_flight, heartbeat_interval, has_retry_backoff });
        });
        let extends = options
            .auto_extend
            .map(|max_extension| Extends::new(visibility_timeout, max_extension, 2 * heartbeat_interval));
        Ok(Self {
            broker: Arc::clone(broker),
            outbox: Arc::clone(outbox),
            machine,
            deadline,
            ends: end_of_life(broker.max_stream_age),
            grace_ends: None,
            subscription: Some(subscription),
            asked: 0,
            window,
            presence: broker.clients.stream(caller, ClientRole::Consumer, options.order.queue.as_str()),
            _followed: followed,
            _open: broker.streams.open(StreamKind::Consume),
            looking: false,
            look_failed: false,
            next_look: Instant::now() + WINDOW_CHECK,
            settles: Settles::default(),
            extends,
            working: FuturesUnordered::new(),
            timer: Box::pin(sleep_until(deadline.instant())),
            options,
        })
    }

    /// Goes on until the stream is to end, and tells how.
    async fn run<C>(&mut self, commands: &mut C) -> Result<()>
    where
        C: Stream<Item = Result<Command>> + Send + Unpin,
    {
        let (broker, outbox) = (Arc::clone(&self.broker), Arc::clone(&self.outbox));
        let window = Arc::clone(&self.window);
        loop {
            self.send_bundles();
            self.ask();
            let in_flight = self.window.in_flight();
            self.presence.set_in_flight(in_flight);
            if let Some(end) = self.machine.end(self.settles.commands(), in_flight) {
                return end;
            }
            self.set_timer();
            let takes_commands = self.takes_commands();
            let may_close = matches!(self.machine.phase(), Phase::Delivering | Phase::Stopped);
            let wants_messages = outbox.wants_messages();
            let is_finishing = self.machine.phase() == Phase::Finishing;
            tokio::select! {
                biased;
                Some(done) = self.working.next() => self.done(done),
                ready = ready(commands), if takes_commands => {
                    for command in ready {
                        self.command(command);
                    }
                }
                handover = next_handover(&mut self.subscription), if wants_messages => self.messages(handover),
                () = outbox.changed() => if outbox.is_closed() {
                    self.gone();
                },
                () = window.changed() => {}
                () = broker.drain.cancelled(), if may_close => self.close(ClosingReason::Draining),
                () = self.timer.as_mut(), if !is_finishing => self.tick(),
            }
        }
    }

    /// Whether more commands are read, or those that were read are enough for now.
    fn takes_commands(&self) -> bool {
        let (results, items) = self.outbox.results();
        self.machine.takes_commands()
            && self.settles.commands() + results < MAX_COMMANDS
            && self.settles.receipts() + items < MAX_RECEIPTS
    }

    /// Does what a command says. Those behind one that ends the stream are not looked at.
    fn command(&mut self, command: Option<Result<Command>>) {
        if !self.machine.takes_commands() {
            return;
        }
        if let Some(extends) = &mut self.extends {
            extends.sign_of_life();
        }
        let reaction = match command {
            None => self.machine.on(Input::HalfClose),
            Some(Err(error)) => self.machine.fail(error),
            Some(Ok(Command::Settle { request_id, settle })) => {
                self.machine.on(Input::Settle);
                return self.settle(request_id, settle);
            }
            Some(Ok(Command::Credit(Err(error)))) => self.machine.fail(error),
            Some(Ok(command)) => self.machine.on(input_of(&command)),
        };
        match reaction {
            Reaction::None | Reaction::Open | Reaction::Settle | Reaction::Demand => {}
            Reaction::SayStopped => {
                self.end_messages();
                self.outbox.put(|piece| piece.stopped = true);
            }
            Reaction::Finish | Reaction::SayClosing => self.end_messages(),
        }
    }

    fn settle(&mut self, request_id: u64, settle: Result<Settle>) {
        match settle {
            Ok(settle) => self.settles.push(settle),
            Err(error) => self.outbox.put_results(vec![CommandResult { request_id, results: Err(error) }]),
        }
    }

    fn send_bundles(&mut self) {
        for bundle in self.settles.next_bundles() {
            self.send(bundle);
        }
    }

    fn send(&self, bundle: Bundle) {
        let (broker, queue) = (Arc::clone(&self.broker), self.options.order.queue.clone());
        self.working.push(Box::pin(async move {
            let began = Instant::now();
            let targets = Targets::Receipts(bundle.receipts.clone());
            // The commands of a stream are bounded, so it may wait: its client is told by HTTP/2.
            let told = broker.merging.settle_unlocked(queue, targets, bundle.change.clone()).await;
            Done::Settled(bundle, told, began)
        }));
    }

    fn wait_for_locked(&self, locked: Locked) {
        let (broker, queue) = (Arc::clone(&self.broker), self.options.order.queue.clone());
        self.working.push(Box::pin(async move {
            let began = Instant::now();
            let targets = Targets::Receipts(locked.settle.receipts.clone());
            let (change, told) = (locked.settle.change.clone(), locked.told.clone());
            let results = broker.merging.until_unlocked(queue, targets, change, told).await;
            Done::Unlocked(locked, results, began)
        }));
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Settled(bundle, Err(error), began) => match self.settles.halves(bundle, &error) {
                Ok(halves) => halves.into_iter().for_each(|half| self.send(half)),
                Err(bundle) => self.settled(&bundle, &Err(error), began),
            },
            Done::Settled(bundle, told, began) => self.settled(&bundle, &told, began),
            Done::Unlocked(locked, results, began) => self.unlocked(&locked, results, began),
            Done::Looked(looked) => {
                self.looking = false;
                self.look_failed = looked.is_err();
                match looked {
                    Err(error) if error.kind() == Kind::QueueNotFound => self.dropped(error),
                    // Another look comes soon.
                    Ok(()) | Err(_) => {}
                }
            }
        }
    }

    fn settled(&mut self, bundle: &Bundle, told: &Result<Told>, began: Instant) {
        match told {
            Ok(told) => {
                let outcomes = bundle.receipts.iter().zip(told);
                let outcomes = outcomes.filter_map(|(receipt, told)| Some((*receipt, (*told)?.outcome)));
                self.note(&bundle.change, outcomes, began);
            }
            Err(error) if bundle.sender == Sender::AutoExtend => {
                let (queue, error) = (self.options.order.queue.as_str(), crate::domain::error::chain(error));
                tracing::debug!(queue, error, "messages could not be kept hidden");
            }
            Err(_) => {}
        }
        let is_whole = told.as_ref().is_ok_and(|told| told.iter().all(Option::is_some));
        if let Some(extends) = &mut self.extends
            && bundle.sender == Sender::AutoExtend
            && !is_whole
        {
            extends.failed();
        }
        let (answered, locked) = self.settles.done(bundle, told);
        for locked in locked {
            self.wait_for_locked(locked);
        }
        if !answered.is_empty() {
            self.outbox.put_results(answered);
        }
    }

    fn unlocked(&mut self, locked: &Locked, results: Result<Vec<ItemResult>>, began: Instant) {
        if let Ok(results) = &results {
            let all = locked.settle.receipts.iter().zip(&locked.told).zip(results);
            let outcomes = all.filter(|((_, told), _)| told.is_none());
            let outcomes = outcomes.map(|((receipt, _), result)| (*receipt, result.outcome));
            self.note(&locked.settle.change, outcomes, began);
        }
        let answer = self.settles.unlocked(locked, results);
        self.outbox.put_results(vec![answer]);
    }

    /// Notes in the window what became of messages.
    fn note(
        &self,
        change: &Change,
        outcomes: impl Iterator<Item = (Receipt, Outcome)> + Clone,
        began: Instant,
    ) {
        if let Change::Reschedule(Settlement::HiddenForMillis(millis)) = change {
            let hidden = Duration::from_millis(millis.unsigned_abs());
            let done = outcomes.clone().filter(|(_, outcome)| *outcome == Outcome::Done);
            self.window.extend(done.map(|(receipt, _)| receipt), began + hidden);
        }
        // What is settled frees its slot by itself; what is another's or nobody's any more does it here.
        let lost = outcomes.filter(|(_, outcome)| *outcome != Outcome::Done);
        self.window.free_deliveries(lost.map(|(receipt, _)| receipt));
    }

    /// Says how many messages would be taken now.
    fn ask(&mut self) {
        let Some(subscription) = &self.subscription else { return };
        let room = if self.outbox.wants_messages() { self.window.room() } else { 0 };
        let demand = self.machine.demand(room);
        if demand != self.asked {
            subscription.set_demand(demand);
            self.asked = demand;
        }
    }

    fn messages(&mut self, handover: Result<Handover>) {
        // A handover uses the demand up.
        self.asked = 0;
        match handover {
            Ok(handover) => {
                let receipts = handover.deliveries().iter().map(|delivery| delivery.receipt);
                self.window.take(receipts, self.options.order.visibility_timeout.span());
                self.machine.delivered(handover.deliveries().len());
                if let Some(extends) = &mut self.extends {
                    extends.delivered();
                }
                self.outbox.put(|piece| piece.messages = Some(handover));
            }
            Err(error) => match error.kind() {
                Kind::QueueNotFound => self.dropped(error),
                Kind::Draining => self.close(ClosingReason::Draining),
                _ => self.fail(error),
            },
        }
    }

    /// Nothing more is wanted, and what was not taken goes back.
    fn end_messages(&mut self) {
        self.subscription = None;
        let untaken = self.outbox.take_back();
        self.forget(untaken);
    }

    /// Counts messages as not delivered; dropped, they are given back.
    fn forget(&mut self, untaken: Option<Handover>) {
        if let Some(untaken) = untaken {
            let receipts = untaken.deliveries().iter().map(|delivery| delivery.receipt);
            self.window.free_deliveries(receipts);
            self.machine.taken_back(untaken.deliveries().len());
        }
    }

    fn fail(&mut self, error: Error) {
        self.machine.fail(error);
        self.end_messages();
    }

    /// The client is gone. What it has sent is done all the same.
    fn gone(&mut self) {
        self.machine.on(Input::HalfClose);
        self.end_messages();
    }

    fn dropped(&mut self, error: Error) {
        if self.machine.phase() != Phase::Finishing {
            self.say_closing(ClosingReason::QueueDropped, Duration::ZERO);
            self.fail(error);
        }
    }

    fn close(&mut self, reason: ClosingReason) {
        if self.machine.on(Input::Close) == Reaction::SayClosing {
            let grace = self.broker.settle_grace;
            self.grace_ends = Some(Instant::now() + grace);
            self.next_look = Instant::now();
            self.say_closing(reason, grace);
        }
    }

    fn say_closing(&mut self, reason: ClosingReason, settle_grace: Duration) {
        self.end_messages();
        let closing = Closing { reason, retry_delay: retry_delay(), settle_grace };
        self.outbox.put(|piece| piece.closing = Some(closing));
    }

    /// When messages that the client lets lie go back.
    fn patience_ends(&self) -> Option<Instant> {
        let patience = self.options.order.visibility_timeout.span() / 2;
        self.outbox.waiting_since().map(|since| since + patience)
    }

    /// When to look whether what the client holds was settled elsewhere, if anything depends on it.
    fn look_due(&self) -> Option<Instant> {
        let waits = match self.machine.phase() {
            Phase::Delivering => self.window.room() == 0,
            Phase::Closing => self.window.in_flight() > 0,
            Phase::Opening | Phase::Stopped | Phase::Finishing => false,
        };
        if !waits || self.looking {
            return None;
        }
        // This looks at every slot, and the stream's task asks each time around.
        let hurried = self.window.next_expiry().filter(|_| !self.look_failed);
        Some(hurried.map_or(self.next_look, |expiry| expiry.min(self.next_look)))
    }

    fn heartbeat_due(&self) -> Instant {
        self.outbox.last_taken() + self.options.heartbeat_interval
    }

    /// Sets the timer to whatever comes first. A stream that is finishing waits for nothing but results.
    fn set_timer(&mut self) {
        let moments = [
            Some(self.deadline.instant()),
            Some(self.heartbeat_due()),
            self.ends.filter(|_| self.grace_ends.is_none()),
            self.grace_ends,
            self.patience_ends(),
            self.look_due(),
            self.extends.as_ref().and_then(Extends::next),
        ];
        // A timer that comes too early costs less than one that is always set anew.
        if let Some(first) = moments.into_iter().flatten().min()
            && (first < self.timer.deadline() || self.timer.is_elapsed())
        {
            self.timer.as_mut().reset(first);
        }
    }

    /// Does what is due.
    fn tick(&mut self) {
        let now = Instant::now();
        let is_due = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
        if is_due(Some(self.deadline.instant())) {
            return self.fail(Error::deadline_exceeded());
        }
        if is_due(self.grace_ends) {
            self.grace_ends = None;
            self.ends = None;
            self.machine.on(Input::GraceOver);
        }
        if is_due(self.ends) {
            self.ends = None;
            self.close(ClosingReason::StreamAge);
        }
        if is_due(self.patience_ends()) {
            let untaken = self.outbox.take_back_from_slow();
            self.forget(untaken);
        }
        if is_due(self.extends.as_ref().and_then(Extends::next)) {
            self.extend();
        }
        if is_due(self.look_due()) {
            self.look();
        }
        if is_due(Some(self.heartbeat_due())) {
            self.outbox.put(|piece| piece.heartbeat = Some(self.window.in_flight()));
        }
    }

    /// Keeps messages hidden for which it is time.
    fn extend(&mut self) {
        let Some(extends) = &mut self.extends else { return };
        let (pending, untaken) = (self.settles.pending(), self.outbox.untaken());
        for (millis, receipts) in extends.due(&self.window.held(), &pending, &untaken) {
            let change = Change::Reschedule(Settlement::HiddenForMillis(millis));
            let bundle = Bundle { change, receipts, sender: Sender::AutoExtend };
            self.settles.send_own(&bundle);
            self.send(bundle);
        }
    }

    /// Asks the database what the client still holds.
    fn look(&mut self) {
        self.looking = true;
        self.next_look = Instant::now() + WINDOW_CHECK;
        let (broker, window) = (Arc::clone(&self.broker), Arc::clone(&self.window));
        let queue = self.options.order.queue.clone();
        self.working
            .push(Box::pin(async move { Done::Looked(broker.dispatch.check_window(&queue, &window).await) }));
    }
}

async fn next_handover(subscription: &mut Option<Subscription>) -> Result<Handover> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

/// All commands that are there; at least one. None among them is their end.
async fn ready<C>(commands: &mut C) -> Vec<Option<Result<Command>>>
where
    C: Stream<Item = Result<Command>> + Send + Unpin,
{
    poll_fn(|context| {
        let mut ready = Vec::new();
        while ready.len() < MAX_COMMANDS {
            match commands.poll_next_unpin(context) {
                Poll::Ready(command) => {
                    let is_end = !matches!(command, Some(Ok(_)));
                    ready.push(command);
                    if is_end {
                        break;
                    }
                }
                Poll::Pending if ready.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(ready)
    })
    .await
}

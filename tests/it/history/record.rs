//! What a history is made of: calls with their answers, faults, and what the tables held at the end.
//!
//! Every moment is in microseconds since 1970: `asked`, `answered` and `seen` by the clock of this process, all others by the
//! database's. Both run on one machine, but a rule compares moments of one clock wherever it can.

use std::collections::BTreeMap;

use super::operators::{List, Move, Policy, Update};

/// Microseconds since 1970.
pub(crate) type Micros = i64;

/// How long the work of a broken call goes on after its caller has gone, on a slow machine.
pub(crate) const AFTERMATH: Micros = 5_000_000;

/// Everything that happened, and what it led to.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    /// In the order in which they were answered.
    pub(crate) calls: Vec<Call>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) at_the_end: BTreeMap<String, Tables>,
    /// When that was looked at.
    pub(crate) ended: Micros,
    /// The policies that queues were made with.
    pub(crate) policies: BTreeMap<String, Policy>,
    /// How long a server may go on with an old policy when another one has changed it.
    pub(crate) policy_lag: Micros,
    /// What the dead-letter queues held at the end.
    pub(crate) dead_letters: Vec<DeadLetter>,
    /// How long a deduplication id is remembered.
    pub(crate) deduplication_window: Micros,
    /// The longest that a visible message may wait while somebody asks for it.
    pub(crate) patience: Micros,
}

/// One call, or one message of a stream of calls, with its answer.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) who: String,
    /// What was called, such as `SendBatch`.
    pub(crate) what: &'static str,
    pub(crate) asked: Micros,
    /// When the answer came, or the caller stopped waiting for it.
    pub(crate) answered: Micros,
    pub(crate) verdict: Verdict,
    /// Whether all parts happen or none.
    pub(crate) whole: bool,
    /// The deduplication id of the call as a whole, which only `Transact` has.
    pub(crate) key: Option<String>,
    /// The answer was kept from an earlier call of the same deduplication id.
    pub(crate) repeated: bool,
    pub(crate) parts: Vec<Part>,
}

/// What the caller knows when the call is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// An error that says that nothing was applied, by its reason.
    Refused(String),
    /// Anything may have happened.
    Unknown(String),
}

/// One thing that a call does.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Send(Send),
    Read(Read),
    Settle(Settle),
    Empty(Empty),
    Update(Update),
    Move(Move),
    List(List),
}

/// A queue emptied, or dropped with all that is in it.
#[derive(Debug, Clone)]
pub(crate) struct Empty {
    pub(crate) queue: String,
    /// The queue and its archive are gone, and another of the name counts as another queue.
    pub(crate) drops: bool,
    /// How many messages were removed, if the answer says so.
    pub(crate) count: Option<i64>,
}

/// One message sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Send {
    pub(crate) queue: String,
    /// Nobody sends the same body twice, but in repetitions under one deduplication id.
    pub(crate) body: String,
    pub(crate) group: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) delay: Micros,
    /// Whether the queue's table refuses this body.
    pub(crate) doomed: bool,
    /// What was acknowledged.
    pub(crate) msg_id: Option<i64>,
    pub(crate) deduplicated: bool,
    /// Of a stream of sends: which stream, and the place in it. One stream is applied in order.
    pub(crate) place: Option<(String, u64)>,
}

/// What one read gave; of a stream, everything that it gave.
#[derive(Debug, Clone, Default)]
pub(crate) struct Read {
    pub(crate) queue: String,
    /// A stream, which reads long after it was asked for.
    pub(crate) stream: bool,
    /// Only the head of each group.
    pub(crate) heads: bool,
    /// The server extends what is unsettled, without being asked.
    pub(crate) extends: bool,
    /// Reading deletes: `Pop`.
    pub(crate) pops: bool,
    /// Any visible message would have been given; a conditional or grouped read does not promise that.
    pub(crate) takes_any: bool,
    /// How long the messages are hidden is left to the queue's policy.
    pub(crate) by_policy: bool,
    /// How long the read waits is left to the queue's policy.
    pub(crate) waits_by_policy: bool,
    /// Of a stream whose client always has room for more: since when it was open.
    pub(crate) open_since: Option<Micros>,
    pub(crate) deliveries: Vec<Delivery>,
}

/// One delivery of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) msg_id: i64,
    pub(crate) read_ct: i32,
    pub(crate) enqueued_at: Micros,
    pub(crate) last_read_at: Micros,
    pub(crate) vt: Micros,
    pub(crate) body: String,
    /// When the caller had it.
    pub(crate) seen: Micros,
}

/// One message settled.
#[derive(Debug, Clone)]
pub(crate) struct Settle {
    pub(crate) queue: String,
    pub(crate) action: Action,
    pub(crate) target: Target,
    /// How long the message is hidden is left to the queue's policy.
    pub(crate) by_policy: bool,
    /// The answer; none if the call failed.
    pub(crate) outcome: Option<Outcome>,
    /// The answered moment of visibility.
    pub(crate) vt: Option<Micros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Delete,
    Archive,
    /// Moves it to the dead-letter queue.
    DeadLetter,
    /// Changes the moment of visibility, to now at the earliest.
    Hide,
    /// Changes it to a later one, or not at all.
    Extend,
    /// Makes it visible as if the delivery had not been.
    GiveBack,
}

/// Which message a settle means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The delivery of a receipt.
    Receipt { msg_id: i64, read_ct: i32, last_read_at: Micros },
    /// Whoever holds it.
    Id(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    NotFound,
    Stale,
}

/// Something done to the system, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) what: FaultKind,
    pub(crate) from: Micros,
    pub(crate) to: Micros,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// Another transaction held these rows.
    Locked { queue: String, msg_ids: Vec<i64> },
    /// A queue's table was locked as a whole: it got another layout.
    Rebuilt { queue: String },
    /// Backends of the database were terminated.
    Terminated,
    /// Postgres was restarted, in words.
    Restarted(&'static str),
    /// A server was killed or stopped, and started again.
    ServerEnded(&'static str),
    /// The primary was lost, and a standby promoted.
    Promoted,
}

/// What a queue and its archive held at the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub(crate) queue: Vec<Row>,
    pub(crate) archive: Vec<Row>,
}

/// A message in a dead-letter queue, as its header tells where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    pub(crate) queue: String,
    pub(crate) msg_id: i64,
    pub(crate) body: String,
    pub(crate) handed_over: i32,
    /// What whoever asked for it has said; [`WORN_OUT`] if nobody did.
    pub(crate) reason: String,
}

/// The reason of a dead letter for which nobody asked.
pub(crate) const WORN_OUT: &str = "max_receives";

/// One row of a queue or an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) msg_id: i64,
    pub(crate) body: String,
}

impl Call {
    /// The messages that it sends.
    pub(crate) fn sends(&self) -> impl Iterator<Item = &Send> {
        self.parts.iter().filter_map(|part| match part {
            Part::Send(send) => Some(send),
            _ => None,
        })
    }

    /// When it had happened at the latest, if it happened.
    pub(crate) fn ends(&self) -> Micros {
        self.answered + if self.is_done() { 0 } else { AFTERMATH }
    }

    /// Whether it is certain that nothing came of it.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.verdict, Verdict::Refused(_))
    }

    /// Whether it is certain that all of it happened.
    pub(crate) fn is_done(&self) -> bool {
        self.verdict == Verdict::Done
    }

    /// Whether nobody can say what came of it.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self.verdict, Verdict::Unknown(_))
    }
}

impl Delivery {
    /// What the receipt of this delivery names.
    pub(crate) fn receipt(&self) -> Target {
        Target::Receipt { msg_id: self.msg_id, read_ct: self.read_ct, last_read_at: self.last_read_at }
    }
}

impl Target {
    /// The message's id.
    pub(crate) fn msg_id(self) -> i64 {
        match self {
            Self::Receipt { msg_id, .. } | Self::Id(msg_id) => msg_id,
        }
    }
}

impl Action {
    /// Whether the message leaves the queue.
    pub(crate) fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::Archive | Self::DeadLetter)
    }
}

impl FaultKind {
    /// Whether it may have changed what callers of a queue hear.
    pub(crate) fn concerns(&self, of: &str) -> bool {
        match self {
            Self::Locked { queue, .. } | Self::Rebuilt { queue } => queue == of,
            Self::Terminated | Self::Restarted(_) | Self::ServerEnded(_) | Self::Promoted => true,
        }
    }

    /// Whether connections broke, so that an answer may have been lost.
    pub(crate) fn breaks_connections(&self) -> bool {
        !matches!(self, Self::Locked { .. } | Self::Rebuilt { .. })
    }

    /// What it is called in a summary.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Locked { .. } => "rows locked".to_owned(),
            Self::Rebuilt { .. } => "queues rebuilt".to_owned(),
            Self::Promoted => "standby promoted".to_owned(),
            Self::Terminated => "backends terminated".to_owned(),
            Self::Restarted(how) => format!("Postgres {how}"),
            Self::ServerEnded(how) => format!("server {how}"),
        }
    }
}

//! The two-way read: messages go out, settles come in, over one stream.
//!
//! [`machine`] says what may happen when, [`settles`] and [`extends`] what goes to the database, [`outbox`] is where the
//! transport takes what is ready, and [`driver`] is the task that moves between them.

mod driver;
mod extends;
mod machine;
mod outbox;
mod settles;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;

use self::outbox::Outbox;
use super::Broker;
use crate::domain::{Caller, Deadline, ReadOrder, Result};

pub use machine::{FlowControl, MAX_CREDIT};
pub use outbox::{Closing, Piece};
pub use settles::{CommandResult, Settle};

/// How a client wants its stream.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// What to read.
    pub order: ReadOrder,
    /// The most messages that the client holds at a time, under automatic flow control.
    pub max_in_flight: usize,
    /// The longest silence.
    pub heartbeat_interval: Duration,
    /// Who decides how many messages come.
    pub flow_control: FlowControl,
    /// For how long after their delivery messages are kept hidden; none for not at all.
    pub auto_extend: Option<Duration>,
}

/// What a client says.
#[derive(Debug)]
pub enum Command {
    /// Begins.
    Start(Box<Result<ConsumeOptions>>),
    /// Settles or extends messages.
    Settle {
        /// The client's number for it.
        request_id: u64,
        /// What to do, or why that cannot be told.
        settle: Result<Settle>,
    },
    /// Allows so many more messages.
    Credit(Result<usize>),
    /// Ends the messages.
    Stop,
    /// Is alive.
    Heartbeat,
    /// Something that this server does not know.
    Unknown,
}

/// The settings of a stream that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// How long each message is hidden.
    pub visibility_timeout: Duration,
    /// The most messages that the client holds at a time.
    pub max_in_flight: usize,
    /// The longest silence.
    pub heartbeat_interval: Duration,
    /// Whether a release without a delay has one by the queue's policy.
    pub has_retry_backoff: bool,
}

/// The client's end of a stream. Dropped, it tells that the client is gone.
pub struct ConsumeStream {
    outbox: Arc<Outbox>,
}

impl ConsumeStream {
    /// Opens a stream that waits for its first command. An error among the commands ends it with that error; their
    /// end lets the results go out that are due.
    pub fn open<C>(broker: &Arc<Broker>, caller: Caller, commands: C, deadline: Deadline) -> Self
    where
        C: Stream<Item = Result<Command>> + Send + Unpin + 'static,
    {
        let outbox = Outbox::new();
        broker.tasks.spawn(driver::run(Arc::clone(broker), caller, commands, Arc::clone(&outbox), deadline));
        Self { outbox }
    }

    /// What is ready, all at once; an error or nothing at the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece>>> {
        self.outbox.poll_next(context)
    }
}

impl Drop for ConsumeStream {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

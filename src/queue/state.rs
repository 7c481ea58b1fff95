//! What a server has to do at this moment, for whoever operates it.

use std::time::Duration;

use super::Broker;
use crate::engine::StreamKind;
use crate::engine::merge::Line;
use crate::pg::PoolUse;

/// Counts the merged calls that were let in, in front of all that this layer sees.
pub trait MergedCalls: Send + Sync {
    /// How many are under way.
    fn under_way(&self) -> usize;

    /// Whether no more are let in than are answered soon, because the processor falls behind.
    fn are_refused(&self) -> bool;
}

/// What a server has to do. Each number is true for some moment of the call, not all for the same.
#[derive(Debug, Clone, Copy)]
pub struct ServerState {
    /// Since its start.
    pub uptime: Duration,
    /// Messages to be stored.
    pub sends: Line,
    /// Messages to be deleted, archived, or made visible.
    pub settles: Line,
    /// Merged calls that were let in and are not answered yet.
    pub merged_calls: usize,
    /// Merged calls are refused at the door.
    pub refuses_merged_calls: bool,
    /// Ways in which queues are read.
    pub dispatchers: usize,
    /// Open `Read` streams.
    pub read_streams: usize,
    /// Open `Consume` streams.
    pub consume_streams: usize,
    /// Open `Produce` streams.
    pub produce_streams: usize,
    /// Open `Watch` streams.
    pub watch_streams: usize,
    /// Transactions that callers hold open.
    pub open_transactions: usize,
    /// Connections to the database.
    pub pool: PoolUse,
}

impl Broker {
    /// What the server has to do now. It asks nobody but the server's own memory.
    pub fn state(&self) -> ServerState {
        let (sends, settles) = self.merging.lines();
        ServerState {
            uptime: self.began.elapsed(),
            sends,
            settles,
            merged_calls: self.merged_calls.under_way(),
            refuses_merged_calls: self.merged_calls.are_refused(),
            dispatchers: self.dispatch.dispatchers(),
            read_streams: self.streams.count(StreamKind::Read),
            consume_streams: self.streams.count(StreamKind::Consume),
            produce_streams: self.streams.count(StreamKind::Produce),
            watch_streams: self.streams.count(StreamKind::Watch),
            open_transactions: self.transactions.open(),
            pool: self.database.pool_use(),
        }
    }
}

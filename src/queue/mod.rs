//! What can be done with queues: one type an operation, valid as soon as it exists.

mod admin;
mod announcer;
mod archive;
mod batch;
mod broker;
mod budget;
mod clients;
mod consume;
mod info;
mod merged;
mod metrics;
mod queues;
mod redrive;
mod release;
mod rules;
mod settle;
mod source;
mod state;
mod stepwise;
mod stream;
mod topics;
mod transact;
mod transact_record;
mod transaction;
mod watch;
mod watched;

pub use crate::engine::Handover;
pub use admin::{
    ConvertArchivePartitioned, CreateFifoIndex, DisableNotifications, EnableNotifications, InstallPgmq,
    ListNotifications, UpdateNotifications,
};
pub use announcer::Announcer;
pub use archive::{Fate, ListArchivedMessages, ListMessages, TakeArchived};
pub use batch::{Pop, ReadBatch, Send, SendBatch};
pub use broker::{Broker, OnConnection, Operation};
pub use budget::Budget;
pub use clients::{ListClients, write_down_clients};
pub use consume::{
    Closing, Command, CommandResult, ConsumeOptions, ConsumeStream, FlowControl, MAX_CREDIT, Piece, Settle,
    Started,
};
pub use info::{GetServerInfo, ServerInfo, ValidateName};
pub use merged::{Change, Merging, Place, SendLines, SentParcel, Told};
pub use metrics::{GetQueueMetrics, ListQueueMetrics};
pub use queues::{
    CreateQueue, CreatedQueue, DropQueue, GetQueue, ListQueues, PurgeQueue, SetQueueLayout, UpdateQueue,
};
pub use redrive::{RedriveMessages, Redriven};
pub use release::{DeadLetter, Parted, Release};
pub use rules::{Rules, SendTerms};
pub use settle::{Archive, Delete, SetVisibilityTimeout, Settled, Targets};
pub use state::{MergedCalls, ServerState};
pub use stream::{ClosingReason, GOODBYE, ReadStream, StreamItem, StreamOptions, end_of_life, retry_delay};
pub use topics::{BindTopic, ListTopicBindings, SendTopic, SendTopicBatch, TestRouting, UnbindTopic};
pub use transact::{Transact, TransactOperation, TransactResult, Transacted};
pub use transaction::{InTransaction, Transaction, Transactions};
pub use watch::{WatchItem, WatchOptions, WatchStream};
pub use watched::{EventKind, Watches};

//! The words of the queue: names, messages, receipts, moments, bounds and errors.
//!
//! A value of these types that exists is valid: each is parsed once, at the edge, and is the proof from
//! there on. Nothing here knows of gRPC or of SQL.

pub mod archive;
mod backoff;
pub mod bounds;
pub mod client;
pub mod dead_letter;
pub mod deduplication;
pub mod error;
pub mod json;
pub mod message;
pub mod name;
pub mod page;
pub mod policy;
pub mod queue;
pub mod read;
pub mod receipt;
mod seldom;
pub mod settlement;
pub mod time;
pub mod topic;

pub use archive::{ArchiveFilter, ListedMessage, MessageState, TakenFromArchive};
pub use bounds::Limits;
pub use client::{Caller, Client, ClientRole};
pub use deduplication::{DeduplicationId, Sent};
pub use error::{Error, Invalid, Kind, Violation};
pub use message::{Delivery, Message, Ordering, OutgoingMessage, Schedule};
pub use name::{NewQueueName, QueueName};
pub use policy::Policy;
pub use queue::{DescribedQueue, Queue, QueueKind, QueueLayout};
pub use read::{ReadOrder, Sight, Taken, View};
pub use receipt::Receipt;
pub use seldom::Seldom;
pub use settlement::Settlement;
pub use time::{Deadline, Timestamp};

/// What a fallible operation of this server gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

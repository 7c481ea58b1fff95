#![doc = include_str!("../README.md")]

mod call;
mod client;
mod connect;
mod consumer;
mod error;
mod handle;
mod life;
mod list;
mod message;
mod producer;
mod queue;
mod send;
mod settle;
mod time;
mod transact;
mod watch;

/// The contract, generated: requests, replies, enumerations, and the stubs.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("pgmq.v1");
}

/// What the build makes of the contract for the thin layer.
#[allow(clippy::all, reason = "generated code")]
mod calls {
    include!(concat!(env!("OUT_DIR"), "/calls.rs"));
}

pub use call::{Call, Rpc};
pub use client::{Client, Raw};
pub use connect::{Builder, Service, Transport};
pub use consumer::{Consume, Consumer, Stopper};
pub use error::Error;
pub use handle::Handling;
pub use list::{List, Paged};
pub use message::{ArchivedMessage, Handle, IntoMessage, Message, Receipt, Sent};
pub use pb::{
    DeadLetterPolicy, ErrorReason, Ordering, Outcome, OutgoingMessage, QueueKind, QueuePolicy, RetryBackoff,
};
pub use producer::{Producer, ProducerBuilder};
pub use queue::Queue;
pub use tonic::Code;
#[cfg(feature = "tls")]
pub use tonic::transport::{Certificate, ClientTlsConfig, Identity};
pub use transact::Transactable;
pub use watch::{Watch, Watcher};

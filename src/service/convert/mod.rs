//! Requests into operations, and outputs into replies.

mod admin;
mod archive;
mod clients;
mod consume;
mod fields;
mod message;
mod policy;
mod queues;
mod read;
mod redrive;
mod settle;
mod time;
mod topics;
mod transact;
mod transaction;
mod watch;

use std::time::Duration;

pub(super) use consume::{Commands, consume_response};
pub(super) use fields::Fields;
pub(super) use message::{outgoing_message, queue_name};
pub(super) use read::{closing, heartbeat, stream_response};
pub(super) use transaction::idle_timeout;
pub(super) use watch::watch_response;

use crate::domain::ClientRole;
use crate::queue::Rules;

/// A request that stands for an operation.
pub(super) trait FromRequest<Request>: Sized {
    /// The deadline of a caller that sets none, where it is not the server's default.
    const DEFAULT_DEADLINE: Option<Duration> = None;

    /// Whether the queue's policy fills in what the request leaves open, so that it has to be known.
    const FOLLOWS_POLICY: bool = false;

    /// What who makes the request does with its queue, if it sends or consumes.
    const ROLE: Option<ClientRole> = None;

    /// The queue that the request names, if it names one.
    fn queue(_request: &Request) -> Option<&str> {
        None
    }

    /// Tells in which roles the request is made, and for which queues; an empty name stands for topics.
    fn uses(request: &Request, uses: &mut dyn FnMut(ClientRole, &str)) {
        if let Some(role) = Self::ROLE {
            match Self::queue(request) {
                Some("") => {}
                queue => uses(role, queue.unwrap_or_default()),
            }
        }
    }

    /// Converts the request; whatever is refused goes into `fields`, and then nothing may come out.
    fn parse(request: Request, rules: &Rules, fields: &mut Fields) -> Option<Self>;
}

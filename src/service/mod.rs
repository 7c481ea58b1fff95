//! gRPC: requests into operations, outputs into replies, errors into statuses. One generic way for every unary RPC.

mod admin_service;
mod call;
mod consume;
mod convert;
mod incoming;
mod produce;
mod queue_service;
mod request_id;
mod status;
mod stream;
mod topic_service;
mod transaction_service;
mod watch;

pub use call::{CallContext, Service, is_short, reads_commands};
pub use request_id::RequestId;
pub use status::{DOMAIN, MAX_REQUEST_BYTES, of_transport, to_status};

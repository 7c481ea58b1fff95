//! The contract's generated types and clients.
#![expect(
    clippy::allow_attributes_without_reason,
    clippy::doc_lazy_continuation,
    unused_qualifications,
    reason = "generated code"
)]

/// The one of the server's own client.
#[path = "../../../src/proto/codec.rs"]
pub mod codec;

tonic::include_proto!("pgmq.v1");

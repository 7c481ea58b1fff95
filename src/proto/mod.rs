//! The contract's generated types, and its descriptors for reflection.
#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::doc_lazy_continuation,
    unused_qualifications,
    reason = "generated code"
)]

mod codec;

pub use codec::Codec;

/// Package `pgmq.v1`.
pub mod v1 {
    tonic::include_proto!("pgmq.v1");
}

/// The encoded `FileDescriptorSet` of the contract.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

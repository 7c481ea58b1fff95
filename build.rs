//! Compiles the contract without protoc, and keeps its descriptors for reflection.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 6] = [
    "pgmq/v1/admin_service.proto",
    "pgmq/v1/error.proto",
    "pgmq/v1/message.proto",
    "pgmq/v1/queue_service.proto",
    "pgmq/v1/topic_service.proto",
    "pgmq/v1/transaction_service.proto",
];

#[expect(clippy::disallowed_methods, reason = "cargo tells build scripts where to write by the environment")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // A new file of the directory is embedded too.
    println!("cargo:rerun-if-changed=src/pg/migrations");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let target = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(target, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .codec_path("crate::proto::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}

//! Generates the client of the contract, without the server's code.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../proto");
    let descriptors =
        protox::compile(["pgmq/v1/queue_service.proto", "pgmq/v1/admin_service.proto"], ["../proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .codec_path("crate::proto::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}

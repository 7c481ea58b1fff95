//! pgmq-grpc: the PGMQ message queue on Postgres, served over gRPC.
//!
//! A request goes `service` → `queue` → `engine` → `pg` → Postgres; each layer knows only those after it. The words
//! that all of them share stand in `domain`. ARCHITECTURE.md walks through it.

pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod pg;
pub mod proto;
pub mod queue;
pub mod server;
pub mod service;
pub mod telemetry;

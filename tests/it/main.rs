//! The integration suite: real servers on a real Postgres, over real TCP.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it should do")]

mod admin;
mod announcements;
mod bad_input;
mod deadlines;
mod drain;
mod embedded;
mod failover;
mod functions;
mod grpcurl;
mod harness;
mod history;
mod install;
mod json_agrees_with_postgres;
mod lists;
mod logs;
mod metrics;
mod outage;
mod partitioned;
mod plain_sql;
mod pop;
mod queues;
mod read_batch;
mod read_stream;
mod replicas;
mod schema;
mod send;
mod settle;
mod start;
mod throughput;
mod tls;
mod topics;
mod transact;
mod transaction;
mod versions;
mod watch;

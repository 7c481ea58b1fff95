//! What a load generator is told to do, and what it found. Both travel between processes as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An order to a load generator: one trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What to do.
    pub load: Load,
    /// The length of each message's body.
    pub body_bytes: usize,
    /// How long to work before counting.
    pub warm_up_ms: u64,
    /// How long to count.
    pub measure_ms: u64,
}

/// What a load generator does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Load {
    /// Callers in one process who share streams of `Produce`.
    Produce {
        /// Where the server is.
        server: String,
        /// The queue.
        queue: String,
        /// How many callers.
        callers: usize,
        /// How many streams, each with a connection.
        streams: usize,
    },
    /// Callers of the unary `Send`, each sending its next message when the last one is answered.
    Send {
        /// Where the server is.
        server: String,
        /// The queues, which each caller takes in turn.
        queues: Vec<String>,
        /// How many callers.
        callers: usize,
        /// How many connections they share.
        connections: usize,
    },
    /// Callers of `SendBatch`.
    SendBatch {
        /// Where the server is.
        server: String,
        /// The queue.
        queue: String,
        /// How many callers, each with a connection.
        callers: usize,
        /// Messages in a batch.
        batch: usize,
    },
    /// Callers of the unary `ReadBatch` of one message, each followed by a `Delete`.
    ReadDelete {
        /// Where the server is.
        server: String,
        /// The queue, which is full.
        queue: String,
        /// How many callers.
        callers: usize,
        /// How many connections they share.
        connections: usize,
    },
    /// Workers who share streams of `Consume` and settle one by one.
    Consume {
        /// Where the server is.
        server: String,
        /// The queue.
        queue: String,
        /// How many workers.
        workers: usize,
        /// How many streams, each with a connection.
        streams: usize,
        /// Whether a worker waits for its verdict before it takes the next message.
        awaits_verdict: bool,
        /// How many messages there are.
        filled: u64,
    },
    /// Callers of `Produce` and workers of `Consume` at once.
    Mixed {
        /// Where the server is.
        server: String,
        /// The queue.
        queue: String,
        /// How many callers.
        producers: usize,
        /// How many workers.
        workers: usize,
    },
    /// A trickle to a consumer that waits.
    Latency {
        /// Where the server is.
        server: String,
        /// The queue.
        queue: String,
        /// How many messages a second.
        per_second: u32,
    },
    /// First pages of a queue's messages, one after the other.
    Browse {
        /// Where the server is.
        server: String,
        /// The queue.
        queue: String,
    },
    /// Stream consumers of empty queues.
    Idle {
        /// Where the server is.
        server: String,
        /// The queues.
        queues: Vec<String>,
        /// How many streams.
        streams: usize,
    },
    /// More callers of the unary `Send` than can be served.
    Overload {
        /// Where the server is.
        server: String,
        /// The queue.
        queue: String,
        /// How many callers have their times told.
        callers: usize,
        /// How many more there are beside them, in a process of their own.
        crowd: usize,
    },
    /// A peer.
    Peer(PeerLoad),
}

/// What a load generator does with a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "peer", rename_all = "snake_case")]
pub enum PeerLoad {
    /// Publishers of persistent messages to a quorum queue, with confirms.
    RabbitmqSend {
        /// Where it is.
        url: String,
        /// How many callers.
        callers: usize,
        /// How many connections they share, each with one channel.
        connections: usize,
    },
    /// Consumers of a quorum queue that acknowledge one by one.
    RabbitmqConsume {
        /// Where it is.
        url: String,
        /// How many messages are there, which the load generator puts there first.
        filled: u64,
        /// How many messages a consumer holds at most.
        prefetch: u16,
        /// How many connections, each with a consumer.
        connections: usize,
    },
    /// Publishers and consumers at once.
    RabbitmqMixed {
        /// Where it is.
        url: String,
        /// How many publishers.
        producers: usize,
        /// How many consumers.
        consumers: usize,
    },
    /// A trickle to a consumer that waits.
    RabbitmqLatency {
        /// Where it is.
        url: String,
        /// How many messages a second.
        per_second: u32,
    },
    /// Publishers to a stream in files.
    NatsSend {
        /// Where it is.
        url: String,
        /// How many callers.
        callers: usize,
        /// How many connections they share.
        connections: usize,
    },
    /// Callers of the official `pgmq` crate.
    PgmqCrateSend {
        /// Where Postgres is.
        url: String,
        /// The queue.
        queue: String,
        /// How many callers.
        callers: usize,
        /// How many connections they share.
        connections: u32,
    },
    /// Producers of the `pgqrs` crate.
    PgqrsSend {
        /// Where Postgres is.
        url: String,
        /// How many producers.
        callers: usize,
        /// How many connections they share.
        connections: u32,
    },
}

/// What a trial found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Messages that were sent, or settled, while counting.
    pub messages: u64,
    /// How long counting took.
    pub seconds: f64,
    /// How long single operations took.
    pub latency: Option<Quantiles>,
    /// Processor time that the processes used while counting, in seconds.
    #[serde(default)]
    pub processor: Processor,
    /// Whatever else was counted.
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
}

impl Outcome {
    /// Messages a second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.messages as f64 / self.seconds } else { 0.0 }
    }

    /// Processor seconds of the server under test for a million messages.
    pub fn server_seconds_per_million(&self) -> Option<f64> {
        (self.messages > 0).then(|| self.processor.server * 1e6 / self.messages as f64)
    }
}

/// Quantiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 90 of 100 are not slower.
    pub p90: f64,
    /// 99 of 100 are not slower.
    pub p99: f64,
    /// 999 of 1,000 are not slower.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// Processor time by process, in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Processor {
    /// The server under test.
    pub server: f64,
    /// Its Postgres, all processes together.
    pub postgres: f64,
    /// The load generator.
    pub load: f64,
}

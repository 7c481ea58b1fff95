//! The table of all options. The command line, the environment, the file, `--help` and the README are made from it.

use super::setting::Group::{Database, Embedded, Limits, Logging, Serving};
use super::setting::Setting;

/// All options of `serve`, in the order of `--help`.
pub const SETTINGS: &[Setting] = &[
    LISTEN,
    DRAIN_TIMEOUT,
    HEALTH_INTERVAL,
    CONFIG,
    DATABASE_URL,
    DATABASE_CA_FILE,
    NO_INSTALL,
    QUEUE_LAYOUT,
    DATA_DIR,
    EPHEMERAL,
    POSTGRES_BIN_DIR,
    POSTGRES_PORT,
    POOL_SIZE,
    MAX_WAITING_CALLS,
    MAX_WAITING_MESSAGES,
    MAX_WAITING_BYTES,
    DEFAULT_DEADLINE,
    MAX_MESSAGE_BYTES,
    DEDUPLICATION_WINDOW,
    MAX_CONNECTIONS,
    MAX_STREAM_AGE,
    MAX_TRANSACTIONS,
    TRANSACTION_WAIT,
    TRANSACTION_IDLE_TIMEOUT,
    TRANSACTION_TIMEOUT,
    LOG,
    LOG_FORMAT,
];

pub(super) const LISTEN: Setting = Setting::new(
    "listen",
    "PGMQ_GRPC_LISTEN",
    Serving,
    "The server listens on this address: IP:PORT, localhost:PORT or unix:/PATH, where port 0 takes a free \
     one. The flag can be repeated; the variable separates several addresses by commas.",
)
.value("ADDRESS")
.default("127.0.0.1:50051")
.many();

pub(super) const DRAIN_TIMEOUT: Setting = Setting::new(
    "drain-timeout",
    "PGMQ_GRPC_DRAIN_TIMEOUT",
    Serving,
    "After SIGTERM or Ctrl-C the process ends within this time, in which calls under way get their answers.",
)
.value("DURATION")
.default("25s");

pub(super) const HEALTH_INTERVAL: Setting = Setting::new(
    "health-interval",
    "PGMQ_GRPC_HEALTH_INTERVAL",
    Serving,
    "The database is checked this often, and the health service reports what the checks find.",
)
.value("DURATION")
.default("2s");

pub(super) const CONFIG: Setting = Setting::new(
    "config",
    "PGMQ_GRPC_CONFIG",
    Serving,
    "These options are read from this TOML file too, each under the name of its flag, as in pool-size = 16. \
     Flags and variables are stronger than the file.",
)
.value("FILE")
.not_in_file();

pub(super) const DATABASE_URL: Setting = Setting::new(
    "database-url",
    "PGMQ_GRPC_DATABASE_URL",
    Database,
    "The queues are in this Postgres, given as a postgres:// URL or as key=value pairs like libpq's; without \
     it the server runs an embedded Postgres of its own. Prefer the variable, since other users of the \
     machine can see flags.",
)
.value("URL")
.weaker("DATABASE_URL")
.secret();

pub(super) const DATABASE_CA_FILE: Setting = Setting::new(
    "database-ca-file",
    "PGMQ_GRPC_DATABASE_CA_FILE",
    Database,
    "The database's certificate must be signed by an authority in this PEM file, in place of the system's. It \
     is stronger than sslrootcert in the URL, and makes verify-full the default sslmode.",
)
.value("FILE");

pub(super) const NO_INSTALL: Setting = Setting::new(
    "no-install",
    "PGMQ_GRPC_NO_INSTALL",
    Database,
    "The server never installs pgmq or its own schema pgmq_grpc into the database. Where they are missing, calls \
     that need them fail with PGMQ_NOT_INSTALLED.",
)
.switch();

pub(super) const QUEUE_LAYOUT: Setting = Setting::new(
    "queue-layout",
    "PGMQ_GRPC_QUEUE_LAYOUT",
    Database,
    "Queues that are created without a layout get this one: tuned, which is faster, or pgmq, which is exactly \
     as pgmq makes them.",
)
.value("LAYOUT")
.default("tuned");

pub(super) const DATA_DIR: Setting = Setting::new(
    "data-dir",
    "PGMQ_GRPC_DATA_DIR",
    Embedded,
    "The embedded Postgres keeps its data in this directory between runs. Without it, that is a directory of \
     the user's where the platform has such things.",
)
.value("DIR");

pub(super) const EPHEMERAL: Setting = Setting::new(
    "ephemeral",
    "PGMQ_GRPC_EPHEMERAL",
    Embedded,
    "The embedded Postgres starts empty in a temporary directory, which is deleted at the end.",
)
.switch();

pub(super) const POSTGRES_BIN_DIR: Setting = Setting::new(
    "postgres-bin-dir",
    "PGMQ_GRPC_POSTGRES_BIN_DIR",
    Embedded,
    "The embedded Postgres runs the programs postgres and initdb in this directory. Without it, an installed \
     Postgres 14 or newer is used, or else one is downloaded.",
)
.value("DIR");

pub(super) const POSTGRES_PORT: Setting = Setting::new(
    "postgres-port",
    "PGMQ_GRPC_POSTGRES_PORT",
    Embedded,
    "The embedded Postgres listens on this port of 127.0.0.1 too, for psql and other programs. Without it, \
     only this server can reach it.",
)
.value("PORT");

pub(super) const POOL_SIZE: Setting = Setting::new(
    "pool-size",
    "PGMQ_GRPC_POOL_SIZE",
    Limits,
    "At most this many connections to the database serve calls, from 1 to 1000.",
)
.value("COUNT")
.default("8");

pub(super) const MAX_WAITING_CALLS: Setting = Setting::new(
    "max-waiting-calls",
    "PGMQ_GRPC_MAX_WAITING_CALLS",
    Limits,
    "At most this many calls wait for a connection to the database; more are refused at once.",
)
.value("COUNT")
.default("4096");

pub(super) const MAX_WAITING_MESSAGES: Setting = Setting::new(
    "max-waiting-messages",
    "PGMQ_GRPC_MAX_WAITING_MESSAGES",
    Limits,
    "At most this many messages wait to be sent, and as many to be settled, half of them in one queue; more \
     are refused at once.",
)
.value("COUNT")
.default("16384");

pub(super) const MAX_WAITING_BYTES: Setting = Setting::new(
    "max-waiting-bytes",
    "PGMQ_GRPC_MAX_WAITING_BYTES",
    Limits,
    "The messages that wait to be sent take at most this memory, half of it in one queue. Those of \
     batches and transactions may take as much again, and so may those that wait for an id, a lock or a connection after a \
     first try. More are refused at once.",
)
.value("SIZE")
.default("64MiB");

pub(super) const DEFAULT_DEADLINE: Setting = Setting::new(
    "default-deadline",
    "PGMQ_GRPC_DEFAULT_DEADLINE",
    Limits,
    "A unary call whose caller sets no deadline has this one.",
)
.value("DURATION")
.default("30s");

pub(super) const MAX_MESSAGE_BYTES: Setting = Setting::new(
    "max-message-bytes",
    "PGMQ_GRPC_MAX_MESSAGE_BYTES",
    Limits,
    "The body of a message can be this large, at most 3MiB.",
)
.value("SIZE")
.default("1MiB");

pub(super) const DEDUPLICATION_WINDOW: Setting = Setting::new(
    "deduplication-window",
    "PGMQ_GRPC_DEDUPLICATION_WINDOW",
    Limits,
    "A deduplication id is remembered for this long, from 100ms to 168h. All servers of a database should have \
     the same window.",
)
.value("DURATION")
.default("5m");

pub(super) const MAX_CONNECTIONS: Setting = Setting::new(
    "max-connections",
    "PGMQ_GRPC_MAX_CONNECTIONS",
    Limits,
    "At most this many clients are connected at a time.",
)
.value("COUNT")
.default("10000");

pub(super) const MAX_STREAM_AGE: Setting = Setting::new(
    "max-stream-age",
    "PGMQ_GRPC_MAX_STREAM_AGE",
    Limits,
    "A stream of this age is asked to end, and a connection of this age takes no new calls (GOAWAY), so that clients \
     spread over new servers; 0 means never.",
)
.value("DURATION")
.default("1h");

pub(super) const MAX_TRANSACTIONS: Setting = Setting::new(
    "max-transactions",
    "PGMQ_GRPC_MAX_TRANSACTIONS",
    Limits,
    "At most this many interactive transactions are open at a time, up to pool-size. Without it, a quarter of \
     pool-size, at least 1.",
)
.value("COUNT");

pub(super) const TRANSACTION_WAIT: Setting = Setting::new(
    "transaction-wait",
    "PGMQ_GRPC_TRANSACTION_WAIT",
    Limits,
    "An interactive transaction waits this long for its turn to begin, and is refused then.",
)
.value("DURATION")
.default("5s");

pub(super) const TRANSACTION_IDLE_TIMEOUT: Setting = Setting::new(
    "transaction-idle-timeout",
    "PGMQ_GRPC_TRANSACTION_IDLE_TIMEOUT",
    Limits,
    "An interactive transaction is rolled back when its client sends nothing for this long.",
)
.value("DURATION")
.default("5s");

pub(super) const TRANSACTION_TIMEOUT: Setting = Setting::new(
    "transaction-timeout",
    "PGMQ_GRPC_TRANSACTION_TIMEOUT",
    Limits,
    "An interactive transaction is rolled back when it has lasted this long.",
)
.value("DURATION")
.default("60s");

pub(super) const LOG: Setting = Setting::new(
    "log",
    "PGMQ_GRPC_LOG",
    Logging,
    "The server logs what this filter lets through: a level (error, warn, info, debug, trace, off), or \
     target=level pairs separated by commas.",
)
.value("FILTER")
.default("info")
.weaker("RUST_LOG");

pub(super) const LOG_FORMAT: Setting = Setting::new(
    "log-format",
    "PGMQ_GRPC_LOG_FORMAT",
    Logging,
    "Log lines on standard error have this form: text, json, or auto, which is text on a terminal and json \
     elsewhere.",
)
.value("FORMAT")
.default("auto");

//! The configuration: flags over environment over file over defaults, checked as a whole.

mod database_url;
mod file;
mod listen;
mod log;
mod problem;
mod setting;
mod settings;
mod sources;
pub(crate) mod value;
mod values;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use database_url::{ClientCertificate, DatabaseUrl, DatabaseUrlError, Tls};
pub use listen::Listen;
pub use log::{LogFilter, LogFormat, LogOptions};
pub use problem::Problems;
pub use setting::{Group, Setting, Shape};
pub use settings::SETTINGS;
pub use sources::{Flags, Sources};

use settings::{
    DATA_DIR, DATABASE_CA_FILE, DATABASE_URL, DEFAULT_DEADLINE, DRAIN_TIMEOUT, EPHEMERAL, HEALTH_INTERVAL,
    LISTEN, LOG, LOG_FORMAT, MAX_CONNECTIONS, MAX_MESSAGE_BYTES, MAX_STREAM_AGE, MAX_TRANSACTIONS,
    MAX_WAITING_BYTES, MAX_WAITING_CALLS, MAX_WAITING_MESSAGES, NO_INSTALL, POOL_SIZE, POSTGRES_BIN_DIR,
    POSTGRES_PORT, TRANSACTION_IDLE_TIMEOUT, TRANSACTION_TIMEOUT, TRANSACTION_WAIT,
};
use values::Values;

const TENTH_SECOND: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Everything that can be configured. A value that exists is valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Addresses to serve on, at least one, no two the same but for port 0. Default: 127.0.0.1:50051.
    pub listen: Vec<Listen>,
    /// The Postgres to use. Default: an embedded one in the platform's data directory.
    pub database: DatabaseSource,
    /// Whether pgmq is never installed. Default: false.
    pub no_install: bool,
    /// Connections to the database for calls, 1 to 1000. Default: 8.
    pub pool_size: u32,
    /// Calls that may wait for a connection, 1 to 1,000,000. Default: 4096.
    pub max_waiting_calls: usize,
    /// Messages that may wait to be sent, and as many to be settled, 1 to 10,000,000. Default: 16384.
    pub max_waiting_messages: usize,
    /// Memory of the messages that wait to be sent, 64 KiB to 64 GiB. Default: 64 MiB.
    pub max_waiting_bytes: usize,
    /// Deadline of a unary call whose caller sets none, 100 ms to 1 h. Default: 30 s.
    pub default_deadline: Duration,
    /// Largest body of a message in bytes, 1 to 3 MiB. Default: 1 MiB.
    pub max_message_bytes: usize,
    /// Longest time from the signal to the end of the process, up to 1 h. Default: 25 s.
    pub drain_timeout: Duration,
    /// Client connections at a time, 1 to 1,000,000. Default: 10,000.
    pub max_connections: usize,
    /// Age at which a stream is asked to end, 1 s to 720 h; `None` means never. Default: 1 h.
    pub max_stream_age: Option<Duration>,
    /// How many interactive transactions there may be, and for how long.
    pub transactions: TransactionLimits,
    /// Time between two checks of the database, 100 ms to 1 h. Default: 2 s.
    pub health_interval: Duration,
    /// What to log, and how.
    pub log: LogOptions,
}

/// How many interactive transactions there may be, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionLimits {
    /// Open ones at a time, 1 to the pool's size. Default: a quarter of the pool, at least 1.
    pub at_once: usize,
    /// Longest wait for a turn, up to 1 h. Default: 5 s.
    pub wait: Duration,
    /// Longest silence of the client, 1 ms to 30 s. Default: 5 s.
    pub idle: Duration,
    /// Longest life, 1 ms to 1 h. Default: 60 s.
    pub total: Duration,
}

/// Which Postgres the server uses.
#[derive(Debug, Clone, PartialEq)]
pub enum DatabaseSource {
    /// One that somebody else runs.
    External(Box<DatabaseUrl>),
    /// One that the server runs itself.
    Embedded(EmbeddedOptions),
}

/// How to run the embedded Postgres.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Directory that keeps it between runs; never with `ephemeral`. Default: the platform's data directory.
    pub data_dir: Option<PathBuf>,
    /// Whether it starts empty and is deleted at the end. Default: false.
    pub ephemeral: bool,
    /// Directory with `postgres` and `initdb`. Default: an installed or downloaded one.
    pub bin_dir: Option<PathBuf>,
    /// Port on 127.0.0.1 where it listens too, 1 to 65535. Default: none, only its own socket.
    pub tcp_port: Option<u16>,
}

impl Config {
    /// Finds and checks every value, from the strongest source that has one.
    ///
    /// # Errors
    ///
    /// All problems of all sources at once.
    pub fn load(flags: &Flags, sources: Sources<'_>) -> Result<Config, Problems> {
        let mut values = Values::gather(flags, sources);
        let database = database(&mut values);
        let pool_size: u32 = values.one(&POOL_SIZE, |text| value::count(text, 1..=1000));
        let config = Config {
            listen: listen(&mut values),
            drain_timeout: values.one(&DRAIN_TIMEOUT, |text| value::duration(text, Duration::ZERO..=HOUR)),
            health_interval: values.one(&HEALTH_INTERVAL, |text| value::duration(text, TENTH_SECOND..=HOUR)),
            database,
            no_install: values.one(&NO_INSTALL, value::boolean),
            pool_size,
            max_waiting_calls: values.one(&MAX_WAITING_CALLS, |text| value::count(text, 1..=1_000_000)),
            max_waiting_messages: values
                .one(&MAX_WAITING_MESSAGES, |text| value::count(text, 1..=10_000_000)),
            max_waiting_bytes: values
                .one(&MAX_WAITING_BYTES, |text| value::size(text, 64 * 1024..=64 * 1024 * 1024 * 1024)),
            default_deadline: values
                .one(&DEFAULT_DEADLINE, |text| value::duration(text, TENTH_SECOND..=HOUR)),
            max_message_bytes: values.one(&MAX_MESSAGE_BYTES, |text| value::size(text, 1..=3 * 1024 * 1024)),
            max_connections: values.one(&MAX_CONNECTIONS, |text| value::count(text, 1..=1_000_000)),
            max_stream_age: values
                .one(&MAX_STREAM_AGE, |text| value::duration_or_none(text, SECOND..=720 * HOUR)),
            transactions: transactions(&mut values, pool_size as usize),
            log: LogOptions {
                filter: values.one(&LOG, str::parse),
                format: values.one(&LOG_FORMAT, str::parse),
                color: values.variable("NO_COLOR").is_none(),
            },
        };
        values.problems.unless_any(config)
    }
}

/// Returns the addresses that a server with the same environment and file, and without flags, would serve on.
///
/// # Errors
///
/// Wrong addresses, and everything wrong with the file.
pub fn configured_listen(sources: Sources<'_>) -> Result<Vec<Listen>, Problems> {
    let flags = Flags::default();
    let mut values = Values::gather(&flags, sources);
    let addresses = listen(&mut values);
    values.problems.unless_any(addresses)
}

fn listen(values: &mut Values<'_>) -> Vec<Listen> {
    let addresses: Vec<Listen> = values.list(&LISTEN);
    let takes_any_port = |address: &Listen| matches!(address, Listen::Tcp(tcp) if tcp.port() == 0);
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) && !takes_any_port(address) {
            values.complain(&LISTEN, &format!("has {address} twice: give each address once"));
        }
    }
    addresses
}

fn database(values: &mut Values<'_>) -> DatabaseSource {
    let embedded = embedded(values);
    if !values.is_given(&DATABASE_URL) {
        if values.is_given(&DATABASE_CA_FILE) {
            values.complain(&DATABASE_CA_FILE, "is of no use without --database-url: give both or neither");
        }
        return DatabaseSource::Embedded(embedded);
    }
    for other in [DATA_DIR, EPHEMERAL, POSTGRES_BIN_DIR, POSTGRES_PORT] {
        if values.is_given(&other) {
            values.exclude(
                &DATABASE_URL,
                &other,
                "the one names a Postgres of yours, the other is for an embedded one",
            );
        }
    }
    let ca_file = values.optional(&DATABASE_CA_FILE, value::path);
    let read_url = |text: &str| match &ca_file {
        Some(ca_file) => DatabaseUrl::parse_with_ca_file(text, ca_file),
        None => DatabaseUrl::parse(text),
    };
    let read_url = |text: &str| read_url(text).map_err(|error| format!("cannot be used: {error}"));
    let Some(url) = values.optional(&DATABASE_URL, read_url) else {
        return DatabaseSource::Embedded(embedded);
    };
    if let Some(file) = &url.ca_file {
        let named_by = if ca_file.is_some() { DATABASE_CA_FILE } else { DATABASE_URL };
        values.check_readable(&named_by, file);
    }
    if let Some(client) = &url.client_certificate {
        values.check_readable(&DATABASE_URL, &client.certificate);
        values.check_readable(&DATABASE_URL, &client.key);
    }
    DatabaseSource::External(Box::new(url))
}

fn transactions(values: &mut Values<'_>, pool_size: usize) -> TransactionLimits {
    let millisecond = Duration::from_millis(1);
    let at_once = values.optional(&MAX_TRANSACTIONS, |text| value::count(text, 1..=1000));
    // A wrong size of the pool is noted where it is read.
    if pool_size > 0 && at_once.is_some_and(|at_once| at_once > pool_size) {
        values.complain(&MAX_TRANSACTIONS, "is more than the connections of pool-size");
    }
    TransactionLimits {
        at_once: at_once.unwrap_or((pool_size / 4).max(1)),
        wait: values.one(&TRANSACTION_WAIT, |text| value::duration(text, Duration::ZERO..=HOUR)),
        idle: values.one(&TRANSACTION_IDLE_TIMEOUT, |text| value::duration(text, millisecond..=30 * SECOND)),
        total: values.one(&TRANSACTION_TIMEOUT, |text| value::duration(text, millisecond..=HOUR)),
    }
}

fn embedded(values: &mut Values<'_>) -> EmbeddedOptions {
    if values.is_given(&EPHEMERAL) && values.is_given(&DATA_DIR) {
        values.exclude(&EPHEMERAL, &DATA_DIR, "the one deletes the data at the end, the other keeps it");
    }
    EmbeddedOptions {
        data_dir: values.optional(&DATA_DIR, value::path),
        ephemeral: values.one(&EPHEMERAL, value::boolean),
        bin_dir: values.optional(&POSTGRES_BIN_DIR, value::path),
        tcp_port: values.optional(&POSTGRES_PORT, |text| value::count(text, 1..=65_535)),
    }
}

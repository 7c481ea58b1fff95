//! What can be wrong with the address of a Postgres.

/// What is wrong with the address of a Postgres. It never shows the address, whose password could stand anywhere in
/// a misspelt one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// Neither a URL nor key=value pairs.
    #[error(
        "it is neither a URL (postgres://user:password@host:5432/dbname) nor key=value pairs (host=localhost \
         dbname=app user=app)"
    )]
    Shape,
    /// A URL in which a separator stands where none can.
    #[error("the characters @ / ? in a user name, password or value must be written %40 %2F %3F")]
    Unencoded,
    /// A text that is not UTF-8 after percent-decoding.
    #[error("its percent-encoding is not UTF-8")]
    Encoding,
    /// A quote without its end.
    #[error("a quoted value does not end")]
    UnendedQuote,
    /// A word without `=`.
    #[error("a parameter has no value; values with spaces need quotes: password='two words'")]
    NoValue,
    /// Parameters that neither `tokio_postgres` nor this server knows.
    #[error("{} unknown: {}; known are {KNOWN}", parameters_are(.names), .names.join(", "))]
    UnknownParameters {
        /// Their names.
        names: Vec<String>,
    },
    /// A value that its parameter cannot have.
    #[error("the parameter {name} must be {right}")]
    BadValue {
        /// The parameter.
        name: &'static str,
        /// What it can be.
        right: &'static str,
    },
    /// No host at all.
    #[error("it names no host; give postgres://host/dbname, or host=/var/run/postgresql for a Unix socket")]
    NoHost,
    /// Ports that do not go with the hosts.
    #[error("it names {hosts} hosts and {ports} ports; give one port for all or one for each")]
    Ports {
        /// How many hosts there are.
        hosts: usize,
        /// How many ports there are.
        ports: usize,
    },
    /// Numeric addresses that do not go with the hosts.
    #[error("it names {hosts} hosts and {addresses} in hostaddr; give one address for each")]
    Addresses {
        /// How many hosts there are.
        hosts: usize,
        /// How many numeric addresses there are.
        addresses: usize,
    },
    /// A certificate without its key, or the other way round.
    #[error("sslcert and sslkey belong together; give both or neither")]
    HalfCertificate,
    /// The authorities of the system with a mode that verifies too little.
    #[error("sslrootcert=system allows only sslmode=verify-full, not {sslmode}")]
    WeakSystemTrust {
        /// The mode it has.
        sslmode: String,
    },
    /// A CA file with a mode that verifies nothing.
    #[error(
        "sslmode={sslmode} verifies no certificate, so the CA file would be of no use; give sslmode=verify-full"
    )]
    UselessCaFile {
        /// The mode it has.
        sslmode: String,
    },
}

impl DatabaseUrlError {
    pub(super) fn bad_value(name: &'static str) -> DatabaseUrlError {
        DatabaseUrlError::BadValue { name, right: right_value(name) }
    }
}

const KNOWN: &str = "user, password, host, hostaddr, port, dbname, sslmode, sslrootcert, sslcert, sslkey, \
     sslnegotiation, channel_binding, target_session_attrs, load_balance_hosts, connect_timeout, tcp_user_timeout, \
     keepalives, keepalives_idle, keepalives_interval, keepalives_count, application_name, options";

fn parameters_are(names: &[String]) -> &'static str {
    if names.len() == 1 { "a parameter is" } else { "parameters are" }
}

fn right_value(name: &str) -> &'static str {
    match name {
        "sslmode" => "disable, allow, prefer, require, verify-ca or verify-full",
        "sslnegotiation" => "postgres or direct",
        "channel_binding" => "disable, prefer or require",
        "target_session_attrs" => "any, primary, read-write or read-only",
        "load_balance_hosts" => "disable or random",
        "host" => "one or more names, addresses or absolute paths, separated by commas",
        "hostaddr" => "one or more numeric addresses, separated by commas",
        "port" => "one or more numbers from 1 to 65535, separated by commas",
        "gssencmode" => "disable or prefer, for GSSAPI is not supported",
        "client_encoding" => "UTF8 or auto",
        "tcp_user_timeout" => "a whole number of milliseconds",
        "connect_timeout" | "keepalives_idle" | "keepalives_interval" => "a whole number of seconds",
        _ => "a whole number",
    }
}

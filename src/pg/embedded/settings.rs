//! The settings of the embedded Postgres, and why they are what they are.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::binaries::Binaries;
use super::directory::{Directory, private};
use super::error::{Error, file};

/// The port in the name of the socket, which needs one even without TCP.
const SOCKET_PORT: u16 = 5432;

/// What is set differently from start to start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    /// Where the socket goes. Plain characters only.
    pub(super) sockets: &'a str,
    /// Listen on this port of 127.0.0.1 as well.
    pub(super) tcp_port: Option<u16>,
    /// The build has LZ4.
    pub(super) lz4: bool,
    /// The system can tell that a client has gone.
    pub(super) connection_check: bool,
}

impl Settings<'_> {
    /// The port that clients name, on the socket and on TCP.
    pub(super) fn port(&self) -> u16 {
        self.tcp_port.unwrap_or(SOCKET_PORT)
    }

    /// The settings as a file for Postgres.
    pub(super) fn text(&self) -> String {
        let listen_addresses = if self.tcp_port.is_some() { "127.0.0.1" } else { "" };
        let wal_compression = if self.lz4 { "lz4" } else { "on" };
        let connection_check_ms = if self.connection_check { 1000 } else { 0 };
        let (sockets, port) = (self.sockets, self.port());
        format!(
            "\
# Written by pgmq-grpc at every start: changes made here are lost.
# To change a setting, use ALTER SYSTEM, which wins over this file.

include 'postgres/postgresql.conf'

# Reached through its socket only, unless a TCP port was asked for, and then from this machine alone.
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700
listen_addresses = '{listen_addresses}'
port = {port}
cluster_name = 'pgmq-grpc'
max_connections = 100

# An acknowledged message is on the disk.
fsync = on
synchronous_commit = on
full_page_writes = on

# Waiting for others before a flush only costs: one connection already commits many callers' messages at once, and
# with pgbench a delay of 100 us took a third to a half of the commits per second at 8 clients, and gained nothing that repeated itself at 32.
commit_delay = 0

# A queue writes the same few pages over and over: rare, long checkpoints save most full-page images, and
# compression shrinks the rest.
max_wal_size = '4GB'
checkpoint_timeout = '15min'
checkpoint_completion_target = 0.9
wal_compression = {wal_compression}

# Hot queues are small. Their statements take less time than compiling them.
shared_buffers = '256MB'
jit = off

# A statement whose client has gone ends soon instead of working for nobody.
client_connection_check_interval = {connection_check_ms}

timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'

# Into postgres.log, which pgmq-grpc empties at a start when it has grown.
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] %q%u@%d '
"
        )
    }
}

/// Writes the settings where Postgres reads them. Tells whether they were the same before.
pub(super) fn write(directory: &Directory, text: &str) -> Result<bool, Error> {
    let path = directory.settings();
    if fs::read_to_string(&path).is_ok_and(|before| before == text) {
        return Ok(true);
    }
    let options = &mut private();
    let mut target =
        options.write(true).create(true).truncate(true).open(&path).map_err(file("create", &path))?;
    target.write_all(text.as_bytes()).map_err(file("write", &path))?;
    // Nothing in it is secret, and under root another user reads it.
    target.set_permissions(fs::Permissions::from_mode(0o644)).map_err(file("open up", &path))?;
    Ok(false)
}

/// Whether this build compresses with LZ4, which costs a fraction of the time of Postgres' own method.
pub(super) async fn has_lz4(directory: &Directory, binaries: &Binaries) -> bool {
    let mut command = directory.account().command(&binaries.program("postgres"));
    command.args(["-C", "wal_compression", "-c", "wal_compression=lz4", "-D"]).arg(directory.cluster());
    command.output().await.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Settings<'_> =
        Settings { sockets: "/d/run", tcp_port: None, lz4: false, connection_check: true };

    #[test]
    fn tcp_is_closed_unless_a_port_was_asked_for() {
        let text = LOCAL.text();
        assert!(text.contains("\nlisten_addresses = ''\nport = 5432\n"), "{text}");
        assert!(text.contains("\nunix_socket_directories = '/d/run'\n"), "{text}");

        let text = Settings { tcp_port: Some(6000), ..LOCAL }.text();
        assert!(text.contains("\nlisten_addresses = '127.0.0.1'\nport = 6000\n"), "{text}");
    }

    #[test]
    fn the_build_decides_on_compression_and_connection_checks() {
        let text = LOCAL.text();
        assert!(text.contains("\nwal_compression = on\n"), "{text}");
        assert!(text.contains("\nclient_connection_check_interval = 1000\n"), "{text}");

        let text = Settings { lz4: true, connection_check: false, ..LOCAL }.text();
        assert!(text.contains("\nwal_compression = lz4\n"), "{text}");
        assert!(text.contains("\nclient_connection_check_interval = 0\n"), "{text}");
    }
}

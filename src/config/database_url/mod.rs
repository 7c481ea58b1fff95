//! The address of a Postgres, as libpq has them: a URL or key=value pairs.
//!
//! `tokio_postgres` reads most of it; what it does not know (verification of certificates, some spellings) is taken
//! out before. Nothing here shows a password, neither in errors nor in `Debug`.

mod error;
mod parameters;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};

pub use error::DatabaseUrlError;
use parameters::Parameters;

/// How to reach a Postgres that somebody else runs. Its `Display` is `host:port/dbname`, without user or password;
/// where no database is named, Postgres takes the user's, and nothing stands after the port.
#[derive(Clone, PartialEq)]
pub struct DatabaseUrl {
    /// Hosts, user, password, timeouts and so on. It names at least one host; its `ssl_mode` agrees with `tls`.
    pub config: tokio_postgres::Config,
    /// Whether TLS is used, and what is verified. Default: `Prefer`, or `VerifyFull` with a CA file.
    pub tls: Tls,
    /// PEM file of the authorities to trust; `None` means those of the system.
    pub ca_file: Option<PathBuf>,
    /// The certificate by which the server identifies itself to Postgres.
    pub client_certificate: Option<ClientCertificate>,
}

/// Whether TLS is used, and what is verified: libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// No TLS.
    Disable,
    /// TLS if Postgres has it, with any certificate. `allow` means this too.
    Prefer,
    /// TLS with any certificate.
    Require,
    /// TLS with a certificate of a trusted authority, whatever its host name.
    VerifyCa,
    /// TLS with a certificate of a trusted authority for the host that was asked for.
    VerifyFull,
}

/// A certificate with its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file of the certificate chain.
    pub certificate: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
}

impl DatabaseUrl {
    /// Reads a `postgres://` or `postgresql://` URL, or key=value pairs.
    ///
    /// # Errors
    ///
    /// The first thing wrong with it. The error never shows the text itself.
    pub fn parse(text: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
        DatabaseUrl::from_parameters(Parameters::parse(text)?)
    }

    /// Reads as `parse` does, but trusts only the authorities in the file, whatever `sslrootcert` says.
    ///
    /// # Errors
    ///
    /// As `parse`, and an `sslmode` that verifies nothing.
    pub fn parse_with_ca_file(text: &str, ca_file: &Path) -> Result<DatabaseUrl, DatabaseUrlError> {
        let mut parameters = Parameters::parse(text)?;
        parameters.take("sslrootcert");
        if let Some(mode @ ("disable" | "allow" | "prefer")) = parameters.get("sslmode") {
            return Err(DatabaseUrlError::UselessCaFile { sslmode: mode.to_owned() });
        }
        let has_sslmode = parameters.get("sslmode").is_some();
        let mut url = DatabaseUrl::from_parameters(parameters)?;
        let tls = if has_sslmode && url.tls != Tls::VerifyFull { Tls::VerifyCa } else { Tls::VerifyFull };
        url.set_tls(tls);
        url.ca_file = Some(ca_file.to_owned());
        Ok(url)
    }

    fn from_parameters(mut parameters: Parameters) -> Result<DatabaseUrl, DatabaseUrlError> {
        let sslmode = parameters.take("sslmode");
        let (tls, ca_file) = verification(sslmode.as_deref(), parameters.take("sslrootcert"))?;
        let client_certificate = match (parameters.take("sslcert"), parameters.take("sslkey")) {
            (Some(certificate), Some(key)) => {
                Some(ClientCertificate { certificate: certificate.into(), key: key.into() })
            }
            (None, None) => None,
            _ => return Err(DatabaseUrlError::HalfCertificate),
        };
        // tokio_postgres would take it for seconds.
        let tcp_user_timeout = parameters.take_number("tcp_user_timeout")?;

        let mut config = parameters.into_config()?;
        if let Some(milliseconds @ 1..) = tcp_user_timeout {
            config.tcp_user_timeout(Duration::from_millis(milliseconds));
        }
        check_hosts(&config)?;
        let mut url = DatabaseUrl { config, tls, ca_file, client_certificate };
        url.set_tls(tls);
        Ok(url)
    }

    fn set_tls(&mut self, tls: Tls) {
        self.tls = tls;
        self.config.ssl_mode(match tls {
            Tls::Disable => SslMode::Disable,
            Tls::Prefer => SslMode::Prefer,
            Tls::Require | Tls::VerifyCa | Tls::VerifyFull => SslMode::Require,
        });
    }
}

/// libpq's rules: `require` with a CA file verifies by it; `sslrootcert=system` verifies everything. Ours: a CA file
/// without sslmode verifies everything, where libpq would accept no TLS at all.
fn verification(
    sslmode: Option<&str>,
    sslrootcert: Option<String>,
) -> Result<(Tls, Option<PathBuf>), DatabaseUrlError> {
    let uses_system = sslrootcert.as_deref() == Some("system");
    let tls = match (sslmode, sslrootcert.is_some()) {
        (None, true) | (Some("verify-full"), _) => Tls::VerifyFull,
        (Some(mode), true) if uses_system => {
            return Err(DatabaseUrlError::WeakSystemTrust { sslmode: mode.to_owned() });
        }
        (Some("verify-ca"), _) | (Some("require"), true) => Tls::VerifyCa,
        (Some("require"), false) => Tls::Require,
        (Some("prefer" | "allow") | None, _) => Tls::Prefer,
        (Some("disable"), _) => Tls::Disable,
        (Some(_), _) => return Err(DatabaseUrlError::bad_value("sslmode")),
    };
    Ok((tls, sslrootcert.filter(|_| !uses_system).map(PathBuf::from)))
}

fn check_hosts(config: &tokio_postgres::Config) -> Result<(), DatabaseUrlError> {
    let (hosts, addresses, ports) =
        (config.get_hosts().len(), config.get_hostaddrs().len(), config.get_ports().len());
    if hosts == 0 && addresses == 0 {
        return Err(DatabaseUrlError::NoHost);
    }
    // The host is shown, so a slip must not make a piece of a password part of it.
    let is_name_letter = |letter: char| letter.is_alphanumeric() || ".-_:%".contains(letter);
    let is_name = |host: &Host| !matches!(host, Host::Tcp(name) if !name.chars().all(is_name_letter));
    if !config.get_hosts().iter().all(is_name) {
        return Err(DatabaseUrlError::bad_value("host"));
    }
    if hosts > 0 && addresses > 0 && hosts != addresses {
        return Err(DatabaseUrlError::Addresses { hosts, addresses });
    }
    let hosts = hosts.max(addresses);
    if ports > 1 && ports != hosts {
        return Err(DatabaseUrlError::Ports { hosts, ports });
    }
    Ok(())
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hosts: Vec<String> = self.config.get_hosts().iter().map(show_host).collect();
        if hosts.is_empty() {
            hosts =
                self.config.get_hostaddrs().iter().map(|address| bracketed(&address.to_string())).collect();
        }
        let ports = self.config.get_ports();
        for (index, host) in hosts.iter().enumerate() {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            write!(f, "{}{host}:{port}", if index == 0 { "" } else { "," })?;
        }
        match self.config.get_dbname() {
            Some(database) => write!(f, "/{database}"),
            None => Ok(()),
        }
    }
}

fn show_host(host: &Host) -> String {
    match host {
        Host::Tcp(name) => bracketed(name),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseUrl")
            .field("at", &format_args!("{self}"))
            .field("tls", &self.tls)
            .field("ca_file", &self.ca_file)
            .field("client_certificate", &self.client_certificate)
            .finish_non_exhaustive()
    }
}

//! Where a server listens.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path of a Unix socket that every supported system takes: macOS has room for 103 bytes, Linux for 107.
const MAX_UNIX_PATH_BYTES: usize = 103;

/// An address to serve on, or to call. Its `Display` is what `FromStr` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// TCP; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket at an absolute path of at most 103 bytes.
    Unix(PathBuf),
}

impl Listen {
    /// Returns the address by which a process on the same machine reaches this one: an unspecified address, such as
    /// `0.0.0.0`, becomes loopback.
    pub fn reachable(&self) -> Listen {
        match self {
            Listen::Tcp(address) if address.ip().is_unspecified() => {
                let loopback: IpAddr =
                    if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                Listen::Tcp(SocketAddr::new(loopback, address.port()))
            }
            other => other.clone(),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("{}:{port}", Ipv4Addr::LOCALHOST),
            None => text.to_owned(),
        };
        match numeric.parse() {
            Ok(address) => Ok(Listen::Tcp(address)),
            Err(_) => Err("is not an address: give IP:PORT, localhost:PORT or unix:/PATH".to_owned()),
        }
    }
}

fn unix(path: &str) -> Result<Listen, String> {
    // gRPC's own naming allows unix:///path too.
    let path = path.strip_prefix("//").unwrap_or(path);
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("is not the absolute path of a socket: give unix:/PATH".to_owned());
    }
    if path.len() > MAX_UNIX_PATH_BYTES {
        return Err(format!(
            "is too long for a Unix socket: give a path of at most {MAX_UNIX_PATH_BYTES} bytes"
        ));
    }
    Ok(Listen::Unix(PathBuf::from(path)))
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numeric_localhost_or_a_socket_path() {
        let read = |text: &str| text.parse::<Listen>().map(|listen| listen.to_string());
        assert_eq!(read("127.0.0.1:50051").as_deref(), Ok("127.0.0.1:50051"));
        assert_eq!(read("localhost:0").as_deref(), Ok("127.0.0.1:0"));
        assert_eq!(read("[::]:50051").as_deref(), Ok("[::]:50051"));
        assert_eq!(read("unix:/run/q.sock").as_deref(), Ok("unix:/run/q.sock"));
        assert_eq!(read("unix:///run/q.sock").as_deref(), Ok("unix:/run/q.sock"));
        let long = format!("unix:/{}", "x".repeat(103));
        let wrong = [
            "",
            "50051",
            ":50051",
            "example.com:1",
            "127.0.0.1",
            "127.0.0.1:65536",
            "unix:",
            "unix:q",
            &long,
        ];
        for wrong in wrong {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        let reachable = |text: &str| text.parse::<Listen>().expect("an address").reachable().to_string();
        assert_eq!(reachable("0.0.0.0:7"), "127.0.0.1:7");
        assert_eq!(reachable("[::]:7"), "[::1]:7");
        assert_eq!(reachable("10.1.2.3:7"), "10.1.2.3:7");
        assert_eq!(reachable("unix:/q"), "unix:/q");
    }
}

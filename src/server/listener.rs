//! Addresses to listen on: TCP and Unix sockets.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::ServeError;
use crate::config::Listen;

/// One address that is listened on. A Unix socket's file goes away with it.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf },
}

/// One accepted connection.
pub(super) enum Accepted {
    Tcp(TokioIo<TcpStream>, SocketAddr),
    Unix(TokioIo<UnixStream>),
}

impl Listener {
    /// Listens on all addresses, or on none.
    pub(super) async fn bind_all(addresses: &[Listen]) -> Result<Vec<Self>, ServeError> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for address in addresses {
            let bound = match address {
                Listen::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
                Listen::Unix(path) => bind_unix(path.clone()).await,
            };
            let failed = |source| ServeError::Listen { address: address.to_string(), source };
            listeners.push(bound.map_err(failed)?);
        }
        Ok(listeners)
    }

    /// The address that it really has: a port 0 has become another.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "tcp".to_owned(), |at| at.to_string())
            }
            Self::Unix { path, .. } => format!("unix:{}", path.display()),
        }
    }

    /// Waits for the next connection.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(TokioIo::new(stream), address))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(TokioIo::new(stream)))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// Listens on a Unix socket; the file that a killed server left behind is replaced, that of a living one is not.
async fn bind_unix(path: PathBuf) -> io::Result<Listener> {
    let listener = match UnixListener::bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(&path).await => {
            fs::remove_file(&path)?;
            UnixListener::bind(&path)?
        }
        bound => bound?,
    };
    Ok(Listener::Unix { listener, path })
}

/// Whether this is a socket that nobody serves. A plain file refuses connections as well, and is not ours to remove.
async fn is_dead(path: &PathBuf) -> bool {
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        return false;
    }
    let answer = UnixStream::connect(path).await;
    answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

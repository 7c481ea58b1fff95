//! Commands that clients send on a stream.

use tonic::Streaming;

use super::status::of_broken_stream;
use crate::domain::Result;

/// What comes next on a stream of commands.
pub(super) enum Incoming<T> {
    /// A command.
    Command(T),
    /// The client sends no more, and still listens.
    End,
    /// The client is gone.
    Gone,
}

/// The next command.
///
/// # Errors
/// `MalformedRequest` or `MessageTooLarge` for bytes that are none.
pub(super) async fn next<T>(commands: &mut Streaming<T>) -> Result<Incoming<T>> {
    match commands.message().await {
        Ok(Some(command)) => Ok(Incoming::Command(command)),
        Ok(None) => Ok(Incoming::End),
        Err(status) => of_broken_stream(status).map_or(Ok(Incoming::Gone), Err),
    }
}

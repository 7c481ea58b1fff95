//! Commands that clients send on a stream.

use tonic::{Code, Status, Streaming};

use crate::domain::{Error, Kind, Result};

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
        Err(status) => of_transport(status),
    }
}

/// tonic says in its own codes what is wrong with a message; everything else is the end of the connection.
fn of_transport<T>(status: Status) -> Result<Incoming<T>> {
    match status.code() {
        Code::Internal => {
            let message = "the command's bytes are not the message that this stream takes";
            Err(Error::new(Kind::MalformedRequest, message).caused_by(status))
        }
        Code::OutOfRange | Code::ResourceExhausted => {
            let message = "the command is larger than the 8 MiB that a request may have";
            Err(Error::new(Kind::MessageTooLarge, message).caused_by(status))
        }
        _ => Ok(Incoming::Gone),
    }
}

//! The one error of the client.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

use crate::pb::{CommandError, ErrorReason};
use crate::time::duration;

/// A call that failed, a message of a producer that was refused, or a stream that ended for good.
///
/// Decide by [`code`](Error::code) and [`reason`](Error::reason); the text is for people.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    reason: Option<String>,
    message: String,
    metadata: HashMap<String, String>,
    request_id: Option<String>,
    retry_delay: Option<Duration>,
    /// Whether the server forbids to try again.
    no_retry: bool,
    outcome_unknown: bool,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// The code of gRPC.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The reason as in [`ErrorReason`], without its prefix, such as `"QUEUE_NOT_FOUND"`. One that this client does not
    /// know keeps its text. `None` where the error does not come from a server of pgmq-grpc.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// Whether this is the reason.
    pub fn is(&self, reason: ErrorReason) -> bool {
        self.reason().is_some_and(|own| known_reason(own) == Some(reason))
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The path of the field that was refused, such as `"messages[17].message"`.
    pub fn field(&self) -> Option<&str> {
        self.0.metadata.get("field").map(String::as_str)
    }

    /// The values that belong to the reason, with the keys that stand at each [`ErrorReason`].
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.0.metadata
    }

    /// The id of the request, which stands in the server's log too.
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// How long the server asks to wait before the call is made again.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_delay
    }

    /// Whether the call may have been applied all the same.
    ///
    /// It is false only where the server says so, or where the call has not left the client.
    pub fn outcome_unknown(&self) -> bool {
        self.0.outcome_unknown
    }

    /// Whether repeating is safe for every call: it has not left, or the server itself says so.
    pub(crate) fn repeat_is_safe(&self) -> bool {
        self.0.code == Code::Unavailable
            && !self.0.no_retry
            && (self.0.reason.is_some() || !self.0.outcome_unknown)
    }

    /// Whether a call that may be repeated has a chance.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.0.code == Code::Unavailable && !self.0.no_retry
    }

    /// Whether a message has not left, because there was no stream.
    pub(crate) fn is_unsent(&self) -> bool {
        self.0.code == Code::Unavailable && self.0.reason.is_none() && !self.0.outcome_unknown
    }

    /// Whether opening the stream again cannot help.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self.0.code,
            Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unimplemented
                | Code::PermissionDenied
                | Code::Unauthenticated
        )
    }

    /// Whether a settle of several messages can have failed because of one of them: the others may be settled.
    pub(crate) fn may_be_of_one(&self) -> bool {
        self.is(ErrorReason::QueueBusy) || self.is(ErrorReason::RefusedByDatabase)
    }

    pub(crate) fn with_outcome_unknown(mut self, unknown: bool) -> Self {
        self.0.outcome_unknown = unknown;
        self
    }

    /// An error that the client finds by itself, before anything has left.
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            reason: None,
            message: message.into(),
            metadata: HashMap::new(),
            request_id: None,
            retry_delay: None,
            no_retry: false,
            outcome_unknown: false,
            source: None,
        }))
    }

    pub(crate) fn json(reason: ErrorReason, field: &str, error: serde_json::Error) -> Self {
        let mut made = Self::local(Code::InvalidArgument, error.to_string());
        made.0.reason = Some(reason_text(reason));
        made.0.metadata.insert("field".to_owned(), field.to_owned());
        made.0.source = Some(std::sync::Arc::new(error));
        made
    }

    /// What the server says of a request that is too large to be read, and a stream does not survive.
    pub(crate) fn too_large() -> Self {
        let mut made = Self::local(Code::InvalidArgument, "the message is larger than a request can be");
        made.0.reason = Some(reason_text(ErrorReason::MessageTooLarge));
        made
    }

    pub(crate) fn deadline_exceeded() -> Self {
        Self::local(Code::DeadlineExceeded, "the deadline has passed").with_outcome_unknown(true)
    }

    /// A stream that broke, or was silent for too long.
    pub(crate) fn broken(message: &str) -> Self {
        Self::local(Code::Unavailable, message).with_outcome_unknown(true)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let mut error = Self::local(status.code(), status.message());
        let inner = &mut error.0;
        let details = status.get_error_details();
        if let Some(info) = details.error_info().filter(|info| info.domain == "pgmq.v1") {
            inner.reason = Some(info.reason.clone());
            inner.metadata = info.metadata.clone();
        }
        let trailer = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
        inner.request_id = details.request_info().map(|info| info.request_id.clone());
        inner.request_id = inner.request_id.take().or_else(|| trailer("x-request-id").map(str::to_owned));
        let pushback: Option<i64> = trailer("grpc-retry-pushback-ms").and_then(|text| text.parse().ok());
        inner.no_retry = pushback.is_some_and(|ms| ms < 0);
        inner.retry_delay = details
            .retry_info()
            .and_then(|info| info.retry_delay)
            .or_else(|| pushback.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis));
        inner.outcome_unknown = match inner.reason.as_deref() {
            Some(reason) => leaves_outcome_open(inner.code, reason),
            None => true,
        };
        if inner.reason.is_none() && has_source::<TimeoutExpired>(&status) {
            inner.code = Code::DeadlineExceeded;
        } else if inner.reason.is_none() && std::error::Error::source(&status).is_some() {
            // The transport has made the status up, with a code that depends on the moment of the break.
            inner.code = Code::Unavailable;
            inner.outcome_unknown = !has_source::<ConnectError>(&status);
        }
        inner.source = Some(std::sync::Arc::new(status));
        error
    }
}

impl From<CommandError> for Error {
    fn from(failure: CommandError) -> Self {
        let mut error = Self::local(Code::from(failure.code), failure.message);
        let reason = match ErrorReason::try_from(failure.reason) {
            Ok(reason) => reason_text(reason),
            Err(_) => failure.reason.to_string(),
        };
        error.0.outcome_unknown = leaves_outcome_open(error.0.code, &reason);
        error.0.reason = Some(reason);
        error.0.metadata = failure.metadata;
        error.0.request_id = Some(failure.request_id).filter(|id| !id.is_empty());
        error.0.retry_delay = duration(failure.retry_delay);
        error
    }
}

fn reason_text(reason: ErrorReason) -> String {
    reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned()
}

fn known_reason(text: &str) -> Option<ErrorReason> {
    ErrorReason::from_str_name(&format!("ERROR_REASON_{text}"))
}

/// Whether the server leaves open what became of the call. A reason that is unknown here goes by its code.
fn leaves_outcome_open(code: Code, reason: &str) -> bool {
    match known_reason(reason) {
        Some(
            ErrorReason::OutcomeUnknown
            | ErrorReason::OutcomeUnknownRetrySafe
            | ErrorReason::DeadlineExceeded
            | ErrorReason::Internal,
        ) => true,
        Some(_) => false,
        None => !matches!(
            code,
            Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::Unimplemented
                | Code::PermissionDenied
                | Code::Unauthenticated
        ),
    }
}

fn has_source<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<E>() {
            return true;
        }
        source = error.source();
    }
    false
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            Some(reason) => write!(f, "{reason}: {}", self.message()),
            None => write!(f, "{:?}: {}", self.code(), self.message()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("code", &self.0.code)
            .field("reason", &self.0.reason)
            .field("message", &self.0.message)
            .field("metadata", &self.0.metadata)
            .field("request_id", &self.0.request_id)
            .field("retry_delay", &self.0.retry_delay)
            .field("outcome_unknown", &self.0.outcome_unknown)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

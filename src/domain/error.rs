//! What can go wrong, in words that a caller may see; transports and SQL states are others' business.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why a call failed. Each kind is one error reason of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each kind is documented as the ErrorReason value of the same name")]
pub enum Kind {
    InvalidQueueName,
    MissingField,
    ConflictingFields,
    InvalidJson,
    InvalidHeaders,
    MessageTooLarge,
    InvalidDuration,
    InvalidTimestamp,
    InvalidCount,
    InvalidEnum,
    InvalidConditional,
    InvalidGroup,
    InvalidDeduplicationId,
    InvalidReceipt,
    InvalidPageToken,
    InvalidPattern,
    InvalidRoutingKey,
    InvalidPartitioning,
    InvalidPolicy,
    InvalidFieldMask,
    MetadataMismatch,
    InvalidClientName,
    StreamProtocol,
    QueueNotFound,
    QueueAlreadyExists,
    QueueKindMismatch,
    PgmqNotInstalled,
    PgmqVersionUnsupported,
    PartmanNotInstalled,
    NotificationsNotEnabled,
    NoRoute,
    DeadLetterQueueMissing,
    DeadLetterChain,
    StaleReceipt,
    ReceiptNotFound,
    DeduplicationIdReused,
    Conflict,
    QueueBusy,
    TransactionFailed,
    TransactionExpired,
    Overloaded,
    DatabaseUnavailable,
    OutcomeUnknown,
    OutcomeUnknownRetrySafe,
    Draining,
    StorageFull,
    DatabaseResources,
    RefusedByDatabase,
    DeadlineExceeded,
    PermissionDenied,
    Internal,
    MalformedRequest,
}

/// Whether a failed call may have changed the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Nothing was changed.
    No,
    /// The change may or may not have been made.
    Unknown,
}

/// One field of a request that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as `messages[17].message`.
    pub field: String,
    /// Why the value is refused.
    pub kind: Kind,
    /// What is wrong and what would be right.
    pub description: String,
    /// A fact for the caller's program, such as the limit that was exceeded.
    pub fact: Option<(&'static str, String)>,
}

/// A single value that was refused; it becomes a [`Violation`] where its field is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Why the value is refused.
    pub kind: Kind,
    /// What is wrong and what would be right.
    pub description: String,
    /// A fact for the caller's program, such as the limit that was exceeded.
    pub fact: Option<(&'static str, String)>,
}

impl Invalid {
    /// Says why a value is refused.
    pub fn new(kind: Kind, description: impl Into<String>) -> Self {
        Self { kind, description: description.into(), fact: None }
    }

    /// Adds a fact for the caller's program.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.fact = Some((key, value.to_string()));
        self
    }

    /// Names the field that holds the value.
    pub fn at(self, field: impl Into<String>) -> Violation {
        Violation { field: field.into(), kind: self.kind, description: self.description, fact: self.fact }
    }
}

/// A failed call. Its `Display` text is for the caller; its sources are for the log alone. A clone shares them, for calls
/// that failed together.
#[derive(Clone)]
pub struct Error(Box<Details>);

#[derive(Debug, Clone)]
struct Details {
    kind: Kind,
    message: String,
    violations: Vec<Violation>,
    metadata: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error of a kind with a sentence for the caller.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            message: message.into(),
            violations: Vec::new(),
            metadata: Vec::new(),
            retry_after: None,
            source: None,
        }))
    }

    /// Makes the error of a request with refused fields; the first one gives the kind.
    pub fn invalid(violations: Vec<Violation>) -> Self {
        let message = match violations.as_slice() {
            [] => "the request is invalid".to_owned(),
            [only] => format!("{}: {}", only.field, only.description),
            [first, rest @ ..] => {
                format!("{}: {} (and {} more)", first.field, first.description, rest.len())
            }
        };
        let kind = violations.first().map_or(Kind::MissingField, |violation| violation.kind);
        let mut error = Self::new(kind, message);
        if let Some(first) = violations.first() {
            error.0.metadata.push(("field", first.field.clone()));
            error.0.metadata.extend(first.fact.clone());
        }
        error.0.violations = violations;
        error
    }

    /// The error of a queue that is not there.
    pub fn queue_not_found(queue: &str) -> Self {
        Self::new(Kind::QueueNotFound, format!("queue {queue:?} does not exist; CreateQueue makes it"))
            .with("queue", queue)
    }

    /// An error whose cause only the log may name.
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Kind::Internal, "internal error; the server's log names the cause under this request id")
            .caused_by(source)
    }

    /// The error of a call whose time ran out.
    pub fn deadline_exceeded() -> Self {
        Self::new(Kind::DeadlineExceeded, "the deadline expired before the call was done")
    }

    /// The error of a call that came while the server was shutting down.
    pub fn draining() -> Self {
        Self::new(Kind::Draining, "the server is shutting down; nothing was applied")
            .retry_after(Duration::from_secs(1))
    }

    /// The same before a commit: nothing was applied, even where the failed statement alone could not tell.
    #[must_use]
    pub fn before_commit(self) -> Self {
        match self.kind() {
            Kind::OutcomeUnknown | Kind::OutcomeUnknownRetrySafe => self.reworded(
                Kind::DatabaseUnavailable,
                "the connection to the database was lost before the commit; nothing was applied",
            ),
            _ => self,
        }
    }

    /// Adds a fact that the caller's program can read.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.0.metadata.push((key, value.into()));
        self
    }

    /// Says when a repetition makes sense.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// Replaces the kind and the sentence, and keeps everything else.
    #[must_use]
    pub fn reworded(mut self, kind: Kind, message: impl Into<String>) -> Self {
        self.0.kind = kind;
        self.0.message = message.into();
        self
    }

    /// Whether it is a failure of the database that may be over soon, so that what waits for it can go on.
    pub fn may_pass(&self) -> bool {
        matches!(
            self.kind(),
            Kind::DatabaseUnavailable
                | Kind::OutcomeUnknown
                | Kind::OutcomeUnknownRetrySafe
                | Kind::Overloaded
                | Kind::Conflict
                | Kind::QueueBusy
                | Kind::DeadlineExceeded
                | Kind::DatabaseResources
        )
    }

    /// Why the call failed.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The fields that were refused; empty unless the request was invalid.
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    /// Facts for the caller's program.
    pub fn metadata(&self) -> &[(&'static str, String)] {
        &self.0.metadata
    }

    /// When a repetition makes sense, if known.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the call may have changed the database all the same.
    pub fn applied(&self) -> Applied {
        match self.kind() {
            Kind::OutcomeUnknown
            | Kind::OutcomeUnknownRetrySafe
            | Kind::DeadlineExceeded
            | Kind::Internal => Applied::Unknown,
            Kind::MalformedRequest
            | Kind::InvalidQueueName
            | Kind::MissingField
            | Kind::ConflictingFields
            | Kind::InvalidJson
            | Kind::InvalidHeaders
            | Kind::MessageTooLarge
            | Kind::InvalidDuration
            | Kind::InvalidTimestamp
            | Kind::InvalidCount
            | Kind::InvalidEnum
            | Kind::InvalidConditional
            | Kind::InvalidGroup
            | Kind::InvalidDeduplicationId
            | Kind::InvalidReceipt
            | Kind::InvalidPageToken
            | Kind::InvalidPattern
            | Kind::InvalidRoutingKey
            | Kind::InvalidPartitioning
            | Kind::InvalidPolicy
            | Kind::InvalidFieldMask
            | Kind::MetadataMismatch
            | Kind::InvalidClientName
            | Kind::StreamProtocol
            | Kind::QueueNotFound
            | Kind::QueueAlreadyExists
            | Kind::QueueKindMismatch
            | Kind::PgmqNotInstalled
            | Kind::PgmqVersionUnsupported
            | Kind::PartmanNotInstalled
            | Kind::NotificationsNotEnabled
            | Kind::NoRoute
            | Kind::DeadLetterQueueMissing
            | Kind::DeadLetterChain
            | Kind::StaleReceipt
            | Kind::ReceiptNotFound
            | Kind::DeduplicationIdReused
            | Kind::Conflict
            | Kind::QueueBusy
            | Kind::TransactionFailed
            | Kind::TransactionExpired
            | Kind::Overloaded
            | Kind::DatabaseUnavailable
            | Kind::Draining
            | Kind::StorageFull
            | Kind::DatabaseResources
            | Kind::RefusedByDatabase
            | Kind::PermissionDenied => Applied::No,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Writes an error and its sources in one line, for the log.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

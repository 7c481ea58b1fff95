//! Errors into gRPC statuses: the only place that knows which kind is which code.

use std::time::Duration;

use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::RequestId;
use crate::domain::error::chain;
use crate::domain::{Error, Kind, Seldom};
use crate::proto::v1::{CommandError, ErrorReason};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "pgmq.v1";

/// Callers are refused by thousands, and a line for each would make it worse.
static REFUSALS: Seldom = Seldom::new();

/// The same for messages that a table's constraint or trigger refuses, which can be all of a producer's.
static REFUSED_BY_DATABASE: Seldom = Seldom::new();

/// The most bytes of a request, as sent or unpacked.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;

/// The most field violations in one status.
const MAX_VIOLATIONS: usize = 10;

/// The status of a failed call, with its details and trailers; failures of the server's own are logged here.
pub fn to_status(error: &Error, request_id: &RequestId) -> Status {
    let (code, reason) = code_and_reason(error.kind());
    log(error, code, reason, request_id);
    let reason = reason_word(reason);
    let metadata = error.metadata().iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    let mut details =
        ErrorDetails::with_error_info(reason, DOMAIN, metadata.collect::<std::collections::HashMap<_, _>>());
    details.set_request_info(request_id.to_string(), "");
    for violation in error.violations().iter().take(MAX_VIOLATIONS) {
        details.add_bad_request_violation(&violation.field, &violation.description);
    }
    if let Some(delay) = error.retry_delay() {
        details.set_retry_info(Some(delay));
    }
    let queue = error.metadata().iter().find(|(key, _)| *key == "queue");
    if let (Some((_, queue)), Kind::QueueNotFound | Kind::QueueAlreadyExists) = (queue, error.kind()) {
        details.set_resource_info("pgmq.v1.Queue", queue, "", error.to_string());
    }
    let trailers = trailers(error, reason, request_id);
    Status::with_error_details_and_metadata(code, error.to_string(), details, trailers)
}

/// What ends a stream of requests: an error of the client's or of the server's own, or nothing if the client has vanished.
///
/// tonic calls a message that it cannot decode INTERNAL, one that is too long OUT_OF_RANGE, and one that unpacks to
/// too much RESOURCE_EXHAUSTED; what the transport says has a cause, and an error of our own is one.
pub(super) fn of_broken_stream(status: Status) -> Option<Error> {
    let mut cause = std::error::Error::source(&status);
    if cause.is_none() {
        return of_transport(status);
    }
    while let Some(error) = cause {
        if let Some(own) = error.downcast_ref::<Error>() {
            return Some(own.clone());
        }
        cause = error.source();
    }
    None
}

/// The error behind a status that the transport made of a request which it could not read.
pub fn of_transport(status: Status) -> Option<Error> {
    match status.code() {
        Code::Internal => Some(
            Error::new(
                Kind::MalformedRequest,
                "the request's bytes are not the message that this method takes",
            )
            .caused_by(status),
        ),
        Code::OutOfRange | Code::ResourceExhausted => Some(
            Error::new(Kind::MessageTooLarge, "the request is larger than the 8 MiB that a request may have")
                .with("limit", MAX_REQUEST_BYTES.to_string())
                .caused_by(status),
        ),
        _ => None,
    }
}

/// The failure of one item of a stream's reply; failures of the server's own are logged here.
pub(super) fn to_command_error(error: Error, request_id: &RequestId) -> CommandError {
    let (code, reason) = code_and_reason(error.kind());
    log(&error, code, reason, request_id);
    to_repeated_command_error(error, request_id)
}

/// The same of an item that fails as another one did, which is logged.
pub(super) fn to_repeated_command_error(error: Error, request_id: &RequestId) -> CommandError {
    CommandError { request_id: request_id.to_string(), ..error.into() }
}

/// The name of a reason as `ErrorInfo` and the trailer have it: the enum's, without its prefix.
pub(super) fn reason_word(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

/// Which code and reason a kind is. No wildcard: a new kind must be decided here.
pub(super) fn code_and_reason(kind: Kind) -> (Code, ErrorReason) {
    use ErrorReason as Reason;
    match kind {
        Kind::InvalidQueueName => (Code::InvalidArgument, Reason::InvalidQueueName),
        Kind::MissingField => (Code::InvalidArgument, Reason::MissingField),
        Kind::ConflictingFields => (Code::InvalidArgument, Reason::ConflictingFields),
        Kind::InvalidJson => (Code::InvalidArgument, Reason::InvalidJson),
        Kind::InvalidHeaders => (Code::InvalidArgument, Reason::InvalidHeaders),
        Kind::MessageTooLarge => (Code::InvalidArgument, Reason::MessageTooLarge),
        Kind::InvalidDuration => (Code::InvalidArgument, Reason::InvalidDuration),
        Kind::InvalidTimestamp => (Code::InvalidArgument, Reason::InvalidTimestamp),
        Kind::InvalidCount => (Code::InvalidArgument, Reason::InvalidCount),
        Kind::InvalidEnum => (Code::InvalidArgument, Reason::InvalidEnum),
        Kind::InvalidConditional => (Code::InvalidArgument, Reason::InvalidConditional),
        Kind::InvalidGroup => (Code::InvalidArgument, Reason::InvalidGroup),
        Kind::InvalidDeduplicationId => (Code::InvalidArgument, Reason::InvalidDeduplicationId),
        Kind::InvalidReceipt => (Code::InvalidArgument, Reason::InvalidReceipt),
        Kind::InvalidPageToken => (Code::InvalidArgument, Reason::InvalidPageToken),
        Kind::InvalidPattern => (Code::InvalidArgument, Reason::InvalidPattern),
        Kind::InvalidRoutingKey => (Code::InvalidArgument, Reason::InvalidRoutingKey),
        Kind::InvalidPartitioning => (Code::InvalidArgument, Reason::InvalidPartitioning),
        Kind::InvalidPolicy => (Code::InvalidArgument, Reason::InvalidPolicy),
        Kind::InvalidFieldMask => (Code::InvalidArgument, Reason::InvalidFieldMask),
        Kind::MetadataMismatch => (Code::InvalidArgument, Reason::MetadataMismatch),
        Kind::InvalidClientName => (Code::InvalidArgument, Reason::InvalidClientName),
        Kind::StreamProtocol => (Code::InvalidArgument, Reason::StreamProtocol),
        Kind::QueueNotFound => (Code::NotFound, Reason::QueueNotFound),
        Kind::QueueAlreadyExists => (Code::AlreadyExists, Reason::QueueAlreadyExists),
        Kind::QueueKindMismatch => (Code::FailedPrecondition, Reason::QueueKindMismatch),
        Kind::PgmqNotInstalled => (Code::FailedPrecondition, Reason::PgmqNotInstalled),
        Kind::PgmqVersionUnsupported => (Code::Unimplemented, Reason::PgmqVersionUnsupported),
        Kind::PartmanNotInstalled => (Code::FailedPrecondition, Reason::PartmanNotInstalled),
        Kind::NotificationsNotEnabled => (Code::FailedPrecondition, Reason::NotificationsNotEnabled),
        Kind::NoRoute => (Code::FailedPrecondition, Reason::NoRoute),
        Kind::DeadLetterQueueMissing => (Code::FailedPrecondition, Reason::DeadLetterQueueMissing),
        Kind::DeadLetterChain => (Code::FailedPrecondition, Reason::DeadLetterChain),
        Kind::StaleReceipt => (Code::FailedPrecondition, Reason::StaleReceipt),
        Kind::ReceiptNotFound => (Code::FailedPrecondition, Reason::ReceiptNotFound),
        Kind::DeduplicationIdReused => (Code::FailedPrecondition, Reason::DeduplicationIdReused),
        Kind::Conflict => (Code::Aborted, Reason::Conflict),
        Kind::QueueBusy => (Code::Aborted, Reason::QueueBusy),
        Kind::TransactionFailed => (Code::Aborted, Reason::TransactionFailed),
        Kind::TransactionExpired => (Code::Aborted, Reason::TransactionExpired),
        Kind::Overloaded => (Code::Unavailable, Reason::Overloaded),
        Kind::DatabaseUnavailable => (Code::Unavailable, Reason::DatabaseUnavailable),
        Kind::OutcomeUnknown => (Code::Unknown, Reason::OutcomeUnknown),
        Kind::OutcomeUnknownRetrySafe => (Code::Unavailable, Reason::OutcomeUnknownRetrySafe),
        Kind::Draining => (Code::Unavailable, Reason::Draining),
        Kind::StorageFull => (Code::ResourceExhausted, Reason::StorageFull),
        Kind::DatabaseResources => (Code::ResourceExhausted, Reason::DatabaseResources),
        Kind::RefusedByDatabase => (Code::FailedPrecondition, Reason::RefusedByDatabase),
        Kind::DeadlineExceeded => (Code::DeadlineExceeded, Reason::DeadlineExceeded),
        Kind::PermissionDenied => (Code::PermissionDenied, Reason::PermissionDenied),
        Kind::Internal => (Code::Internal, Reason::Internal),
        Kind::MalformedRequest => (Code::InvalidArgument, Reason::MalformedRequest),
    }
}

fn trailers(error: &Error, reason: &'static str, request_id: &RequestId) -> MetadataMap {
    let mut trailers = MetadataMap::new();
    trailers.insert("pgmq-reason", AsciiMetadataValue::from_static(reason));
    if let Ok(id) = request_id.to_string().parse() {
        trailers.insert("x-request-id", id);
    }
    if let (Kind::Overloaded, Some(delay)) = (error.kind(), error.retry_delay()) {
        trailers.insert("grpc-retry-pushback-ms", AsciiMetadataValue::from(millis(delay)));
    }
    trailers
}

fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

fn log(error: &Error, code: Code, reason: ErrorReason, request_id: &RequestId) {
    let seldom = match error.kind() {
        Kind::Overloaded => Some(&REFUSALS),
        Kind::RefusedByDatabase => Some(&REFUSED_BY_DATABASE),
        _ => None,
    };
    if let Some(seldom) = seldom {
        return log_refusal(seldom, error, reason_word(reason), request_id);
    }
    let (reason, cause, applied) = (reason_word(reason), chain(error), error.applied());
    let client = request_id.client().map(|client| &**client);
    match code {
        Code::Internal => tracing::error!(%request_id, client, reason, cause, ?applied, "call failed"),
        Code::Unknown | Code::Unavailable | Code::ResourceExhausted | Code::PermissionDenied => {
            tracing::warn!(%request_id, client, reason, cause, ?applied, "call failed");
        }
        _ => tracing::debug!(%request_id, client, reason, "call refused"),
    }
}

fn log_refusal(seldom: &Seldom, error: &Error, reason: &'static str, request_id: &RequestId) {
    if let Some(not_logged) = seldom.take() {
        let (client, cause) = (request_id.client().map(|client| &**client), chain(error));
        tracing::warn!(%request_id, client, reason, cause, not_logged, "call refused");
    }
}

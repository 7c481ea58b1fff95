//! What Postgres' errors mean for a caller.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::error::{DbError, Severity, SqlState};

use super::guard::Refusal;
use super::manager::ConnectError;
use super::statement::Effect;
use crate::domain::{Error, Kind};

/// The error of a statement that failed or whose connection was lost while it ran.
pub(super) fn of_statement(error: tokio_postgres::Error, effect: Effect) -> Error {
    let Some(database_error) = error.as_db_error() else {
        return match error.is_closed() || is_io(&error) {
            true => connection_lost(effect).caused_by(error),
            false => Error::internal(error),
        };
    };
    let cause = Cause::of(database_error);
    match cause.is_last {
        // Its code says why the session has ended, and not what has become of the statement: a disk that fails while the
        // commit is written may have it.
        true => connection_lost(effect).caused_by(cause),
        false => of_database(database_error, effect).caused_by(cause),
    }
}

/// The error of a commit. What the database refuses is not committed; a session that has ended, or whose answer is not
/// understood, leaves it open.
pub(super) fn of_commit(error: tokio_postgres::Error, effect: Effect) -> Error {
    let Some(refused) = error.as_db_error() else {
        return connection_lost(effect).caused_by(error);
    };
    if ends_session(&error) {
        return of_statement(error, effect);
    }
    match &refused.code().code()[..2] {
        "40" => conflict().caused_by(Cause::of(refused)),
        "08" | "57" => of_statement(error, effect),
        _ => {
            let error = of_database(refused, effect);
            let error = if error.kind() == Kind::Internal { not_committed() } else { error };
            error.caused_by(Cause::of(refused))
        }
    }
}

/// The error of a commit that the database refused, for whatever it found then.
pub fn not_committed() -> Error {
    let why = "the database refused the commit, because of a statement or a deferred constraint; nothing was applied";
    Error::new(Kind::TransactionFailed, why)
}

/// What a log may show of an error: no detail, which can hold the whole row, and no text in which Postgres or a
/// trigger quotes a value.
#[derive(Debug, thiserror::Error)]
#[error("SQLSTATE {}{message}", code.code())]
struct Cause {
    code: SqlState,
    message: String,
    of_notify: bool,
    /// It was in the midst of a row or of a function.
    has_context: bool,
    /// Its session has ended with it.
    is_last: bool,
}

impl Cause {
    fn of(error: &DbError) -> Self {
        let code = error.code().clone();
        let message = match &code.code()[..2] {
            "22" | "P0" => String::new(),
            _ => format!(": {}", error.message()),
        };
        let of_notify = error.routine().is_some_and(|routine| NOTIFY_ROUTINES.contains(&routine));
        let has_context = error.where_().is_some();
        Self { code, message, of_notify, has_context, is_last: is_last(error) }
    }
}

/// Where Postgres finds that a notification cannot be sent: a trigger's, and the same for every row.
const NOTIFY_ROUTINES: [&str; 3] = ["Async_Notify", "PreCommit_Notify", "asyncQueueAddEntries"];

/// Whether a statement for many items may have failed because of one of them, so that the others are worth a try. A lost
/// connection, a collision, a lock, a lack of means or a missing table concern all.
pub fn may_be_one_items_fault(error: &Error) -> bool {
    cause(error).is_some_and(|cause| {
        let all = cause.of_notify
            || cause.is_last
            || cause.code == SqlState::LOCK_NOT_AVAILABLE
            || ["25", "40", "53", "57", "58"].contains(&&cause.code.code()[..2])
            // In a trigger, which may mind one row only, anything can go wrong.
            || (!cause.has_context
                && ([SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN].contains(&cause.code) || ["08", "XX"].contains(&&cause.code.code()[..2])));
        !all
    })
}

/// Whether the database may refuse a statement for many rows because of one of them.
pub fn is_of_a_row(error: &Error) -> bool {
    error.kind() == Kind::RefusedByDatabase && (!is_raised(error) || may_be_one_items_fault(error))
}

/// Whether the database itself said so.
pub(super) fn is_raised(error: &Error) -> bool {
    cause(error).is_some()
}

/// Whether a statement has waited in vain for a table, which everybody needs, and not for a row or in a trigger.
pub fn is_locked_table(error: &Error) -> bool {
    cause(error).is_some_and(|cause| cause.code == SqlState::LOCK_NOT_AVAILABLE && !cause.has_context)
}

/// Whether a statement has taken itself back because something is missing of what it stored.
pub fn is_swallowed(error: &Error) -> bool {
    cause(error).is_some_and(|cause| cause.code == SqlState::DIVISION_BY_ZERO && !cause.has_context)
}

fn cause(error: &Error) -> Option<&Cause> {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |error| error.source()).find_map(<dyn std::error::Error>::downcast_ref)
}

/// Whether a statement failed because a value is larger than Postgres can show, which no repetition changes.
pub(super) fn is_unrenderable(error: &Error) -> bool {
    has_code(error, &SqlState::PROGRAM_LIMIT_EXCEEDED)
}

/// Whether a statement failed because a number is larger than its type can hold.
pub(super) fn is_out_of_range(error: &Error) -> bool {
    has_code(error, &SqlState::NUMERIC_VALUE_OUT_OF_RANGE)
}

fn has_code(error: &Error, code: &SqlState) -> bool {
    let cause = std::error::Error::source(error).and_then(<dyn std::error::Error>::downcast_ref::<Cause>);
    cause.is_some_and(|cause| cause.code == *code)
}

/// Whether an error is the last that its session says.
pub(super) fn ends_session(error: &tokio_postgres::Error) -> bool {
    // After a failover the old primary may live on, read-only: its sessions are of no more use.
    if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
        return true;
    }
    error.is_closed() || is_io(error) || error.as_db_error().is_some_and(is_last)
}

/// Whether the database has ended the session, or itself.
fn is_last(error: &DbError) -> bool {
    matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// The error of a connection that could not be made.
pub(super) fn of_connecting(error: impl Into<Arc<ConnectError>>) -> Error {
    let error = error.into();
    let reason = match &*error {
        ConnectError::Postgres(error) => match error.as_db_error().map(DbError::code) {
            Some(&SqlState::TOO_MANY_CONNECTIONS) => "the database has no free connection",
            Some(code) if code.code().starts_with("28") => "the database refused this server's credentials",
            Some(&SqlState::INVALID_CATALOG_NAME) => "the database of this server's URL does not exist",
            Some(_) => "the database does not take connections now",
            None => "the database cannot be reached",
        },
        ConnectError::Refused(Refusal::Standby) => "the database is a standby, which only reads",
        ConnectError::Refused(Refusal::ReadOnly) => "the database is read-only, as after a failover",
        ConnectError::Refused(Refusal::OldPrimary { .. }) => {
            "the database that answers is an old primary, which another one has replaced"
        }
        ConnectError::Unresolved(_) => "the database cannot be reached",
        ConnectError::Silent => "the database does not answer",
    };
    unavailable(reason).caused_by(error)
}

/// Nothing was applied, and a repetition may work soon.
pub(super) fn unavailable(reason: &str) -> Error {
    Error::new(Kind::DatabaseUnavailable, format!("{reason}; nothing was applied"))
        .retry_after(Duration::from_secs(1))
}

pub(super) fn connection_lost(effect: Effect) -> Error {
    match effect {
        Effect::Reads => unavailable("the connection to the database was lost"),
        Effect::Repeatable => Error::new(
            Kind::OutcomeUnknownRetrySafe,
            "the connection to the database was lost; the call may have been applied, and repeating it is safe",
        )
        .retry_after(Duration::from_secs(1)),
        Effect::Writes => Error::new(
            Kind::OutcomeUnknown,
            "the connection to the database was lost; the call may have been applied",
        ),
    }
}

/// The error of a statement whose server was replaced by another primary before it answered.
pub(super) fn superseded(effect: Effect) -> Error {
    let why = "another primary has taken over from the one that this call used";
    match effect {
        Effect::Reads => unavailable(why),
        Effect::Repeatable => {
            let why = format!("{why}; the call may have been applied, and repeating it is safe");
            connection_lost(effect).reworded(Kind::OutcomeUnknownRetrySafe, why)
        }
        Effect::Writes => Error::new(Kind::OutcomeUnknown, format!("{why}; the call may have been applied")),
    }
}

/// The error of a statement that is committed, but whose synchronous standby may not have it; nothing was wrong with
/// one that only reads.
pub(super) fn unreplicated(effect: Effect) -> Option<Error> {
    let why = "the database stopped waiting for its standby: the call is applied, and a failover may undo it";
    match effect {
        Effect::Reads => None,
        Effect::Repeatable => {
            let why = format!("{why}; repeating it is safe");
            Some(connection_lost(effect).reworded(Kind::OutcomeUnknownRetrySafe, why))
        }
        Effect::Writes => Some(Error::new(Kind::OutcomeUnknown, why)),
    }
}

pub(super) fn conflict() -> Error {
    Error::new(Kind::Conflict, "the call collided with others each time it was tried; nothing was applied")
        .retry_after(Duration::from_millis(100))
}

fn of_database(error: &DbError, effect: Effect) -> Error {
    let (code, has_context) = (error.code(), error.where_().is_some());
    match *code {
        // Of a trigger, and neither pgmq's nor ours.
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_FUNCTION | SqlState::INVALID_SCHEMA_NAME
            if has_context && !error.message().contains("pgmq") =>
        {
            refused(error)
        }
        // Named in Postgres' own quotes, in every language that its messages come in.
        SqlState::UNDEFINED_TABLE if names_meta(error) => not_installed(),
        SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME if names_own_schema(error) => {
            super::schema::not_usable(
                "the schema pgmq_grpc is missing; a server that may create it makes it when it starts",
            )
        }
        SqlState::INVALID_SCHEMA_NAME => not_installed(),
        SqlState::UNDEFINED_TABLE => Error::new(Kind::QueueNotFound, "the queue does not exist"),
        SqlState::UNDEFINED_FUNCTION => Error::new(
            Kind::PgmqVersionUnsupported,
            "the installed pgmq lacks a function that this call needs; InstallPgmq upgrades it",
        ),
        SqlState::UNDEFINED_COLUMN if error.message().contains("last_read_at") => Error::new(
            Kind::RefusedByDatabase,
            "the queue's tables lack the column last_read_at, as all do that an upgraded pgmq 1.10.0 has made; it is to be \
             added to the queue's and to the archive's as a timestamptz; nothing was applied",
        )
        .with("sqlstate", code.code()),
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => conflict(),
        // Two made the same index or trigger at once: `IF NOT EXISTS` does not see what is not committed.
        SqlState::UNIQUE_VIOLATION if error.schema() == Some("pg_catalog") => conflict(),
        SqlState::DUPLICATE_OBJECT => conflict(),
        SqlState::LOCK_NOT_AVAILABLE => {
            Error::new(Kind::QueueBusy, "a lock was not free within 2 s; nothing was applied")
                .retry_after(Duration::from_secs(1))
        }
        SqlState::QUERY_CANCELED => Error::deadline_exceeded(),
        SqlState::READ_ONLY_SQL_TRANSACTION => unavailable("the database is read-only, as after a failover"),
        SqlState::INSUFFICIENT_PRIVILEGE => Error::new(
            Kind::PermissionDenied,
            "the role with which this server uses the database lacks a right for this call",
        ),
        SqlState::DISK_FULL => {
            Error::new(Kind::StorageFull, "the database's disk is full; nothing was applied")
        }
        _ => match &code.code()[..2] {
            // A trigger may have lost a connection of its own.
            "08" if has_context => refused(error),
            "08" | "57" => connection_lost(effect),
            "53" => Error::new(
                Kind::DatabaseResources,
                "the database lacks memory or another resource for this call; nothing was applied",
            )
            .retry_after(Duration::from_secs(1)),
            // The statements' own way to take back a batch of which a trigger has swallowed a part.
            "22" if *code == SqlState::DIVISION_BY_ZERO && !has_context => swallowed(),
            "22" | "23" | "44" | "54" | "P0" => refused(error),
            _ if has_context => refused(error),
            _ => Error::internal(code.code()),
        },
    }
}

/// The error of a statement that a constraint, a trigger or a limit of the database has refused, which takes back all
/// that it did. A constraint's name says more than its SQLSTATE; texts can quote values.
fn refused(error: &DbError) -> Error {
    let why =
        "the database refuses what this call would do, as by a constraint or a trigger; nothing was applied";
    let refused = Error::new(Kind::RefusedByDatabase, why).with("sqlstate", error.code().code());
    match error.constraint() {
        Some(constraint) => refused.with("constraint", constraint),
        None => refused,
    }
}

/// The error of messages that were not stored or changed, although nothing has failed.
pub fn swallowed() -> Error {
    let why =
        "a trigger on a queue's or an archive's table swallows what this call would do; nothing was applied";
    Error::new(Kind::RefusedByDatabase, why)
}

pub(super) fn not_installed() -> Error {
    Error::new(
        Kind::PgmqNotInstalled,
        "pgmq is not installed in this database; InstallPgmq installs it, and so does a server without --no-install",
    )
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}

/// Whether what is missing is of the servers' own schema, and not a queue of such a name.
fn names_own_schema(error: &DbError) -> bool {
    let message = error.message();
    match *error.code() {
        SqlState::INVALID_SCHEMA_NAME => message.contains("pgmq_grpc"),
        _ => message.contains("pgmq_grpc.") && !message.contains("pgmq.q_") && !message.contains("pgmq.a_"),
    }
}

/// Whether the missing table is `pgmq.meta` itself, and not that of a queue of such a name.
fn names_meta(error: &DbError) -> bool {
    error.message().contains("pgmq.meta") && !error.message().contains("_pgmq.meta")
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio_postgres::{Config, NoTls};

    use super::*;

    /// An error of this severity and code, as it comes over a connection.
    async fn received(severity: &str, code: &str) -> tokio_postgres::Error {
        let fields = format!("S{severity}\0V{severity}\0C{code}\0Msaid by the database\0\0");
        let length = u32::try_from(4 + fields.len()).expect("a short message");
        let (ours, mut theirs) = tokio::io::duplex(1_024);
        theirs.write_all(&[b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat()).await.expect("room");
        let connected = Config::new().user("somebody").connect_raw(ours, NoTls).await;
        connected.err().expect("the error")
    }

    #[tokio::test]
    async fn the_end_of_a_session_leaves_the_outcome_open_whatever_its_code_says() {
        for severity in ["FATAL", "PANIC"] {
            // A disk that fails or is full, no memory, a limit of the database's own, and no known reason.
            for code in ["58030", "53100", "53200", "25P04", "XX000", "57P01"] {
                for meaning in [of_statement, of_commit] {
                    let expected = [
                        (Effect::Writes, Kind::OutcomeUnknown),
                        (Effect::Repeatable, Kind::OutcomeUnknownRetrySafe),
                        (Effect::Reads, Kind::DatabaseUnavailable),
                    ];
                    for (effect, kind) in expected {
                        let error = meaning(received(severity, code).await, effect);
                        assert_eq!(error.kind(), kind, "{severity} {code}");
                        assert!(!may_be_one_items_fault(&error), "{severity} {code}");
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn what_the_database_refuses_and_outlives_is_not_applied() {
        let expected = [
            ("53100", Kind::StorageFull),
            ("53200", Kind::DatabaseResources),
            ("23514", Kind::RefusedByDatabase),
            ("40001", Kind::Conflict),
            ("25006", Kind::DatabaseUnavailable),
        ];
        for (code, kind) in expected {
            for meaning in [of_statement, of_commit] {
                assert_eq!(meaning(received("ERROR", code).await, Effect::Writes).kind(), kind, "{code}");
            }
        }
    }
}

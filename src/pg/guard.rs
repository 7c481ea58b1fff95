//! Which connections may be used: none to a standby, none to a primary that another one has replaced.
//!
//! Every promotion of a standby begins a new timeline of its cluster, so of two primaries of one cluster the one with the
//! higher timeline is the true one. The guard remembers the highest that this process has seen. An old primary that
//! comes back, or was cut off and never knew, is refused; and once a newer one shows itself, the connections to the
//! older are used for nothing any more, wherever they are.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::standing::{Greeting, Position, Standing};

/// Why a server that answers is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// It is a standby.
    #[error("the server is a standby")]
    Standby,
    /// Its sessions are read-only by default.
    #[error("the server is set to read-only transactions")]
    ReadOnly,
    /// It is a primary of the past.
    #[error(
        "the server is a primary on timeline {timeline}, but the cluster's timeline {newest} was seen; if it has been \
         set back on purpose, restart pgmq-grpc"
    )]
    OldPrimary {
        /// Its timeline.
        timeline: i64,
        /// The highest that was seen.
        newest: i64,
    },
}

/// When a connection was let in, in terms of what has happened to the database since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Admission {
    era: u64,
    generation: u64,
}

/// Remembers what the database was, for all connections of a process.
#[derive(Default)]
pub(super) struct Guard {
    /// How servers are asked.
    pub(super) greeting: Greeting,
    seen: Mutex<Seen>,
    /// Goes up when another primary takes over: what older connections say does not count any more.
    era: AtomicU64,
    /// Goes up with the era, and when the database is about to end: older connections are not taken from the pool.
    generation: AtomicU64,
    /// Another primary has taken over.
    taken_over: Notify,
}

#[derive(Default)]
struct Seen {
    /// The last position that was admitted.
    current: Option<Position>,
    /// The highest timeline of each system.
    highest: HashMap<Option<i64>, i64>,
    /// The last old primary that was refused: one log line each is enough.
    refused: Option<Position>,
    synchronous_commit: String,
}

impl Guard {
    /// Lets a new connection in, or refuses it. Another database than before, or a higher timeline, makes
    /// all older connections useless.
    pub(super) fn admit(&self, standing: &Standing) -> Result<Admission, Refusal> {
        if standing.in_recovery {
            return Err(Refusal::Standby);
        }
        if standing.read_only {
            return Err(Refusal::ReadOnly);
        }
        let mut seen = self.seen();
        if let Some(position) = standing.position {
            self.judge(&mut seen, position)?;
        }
        if seen.synchronous_commit != standing.synchronous_commit {
            seen.synchronous_commit.clone_from(&standing.synchronous_commit);
            warn_of_losses(standing);
        }
        Ok(Admission {
            era: self.era.load(Ordering::Acquire),
            generation: self.generation.load(Ordering::Acquire),
        })
    }

    /// Hears of a server to which no connection is wanted. Only a newer primary of the same system matters.
    pub(super) fn hear_of(&self, standing: &Standing) {
        let Some(position) = standing.position.filter(|_| !standing.in_recovery) else { return };
        let mut seen = self.seen();
        if seen.current.is_some_and(|current| current.system == position.system) {
            // A refusal is no news here.
            let _ = self.judge(&mut seen, position);
        }
    }

    fn judge(&self, seen: &mut Seen, position: Position) -> Result<(), Refusal> {
        let Position { system, timeline } = position;
        let newest = seen.highest.get(&system).copied().unwrap_or(timeline).max(timeline);
        if timeline < newest {
            if seen.refused.replace(position) != Some(position) {
                tracing::warn!(timeline, newest, "an old primary is refused");
            }
            return Err(Refusal::OldPrimary { timeline, newest });
        }
        seen.highest.insert(system, newest);
        match seen.current.replace(position) {
            Some(before) if before != position => {
                self.generation.fetch_add(1, Ordering::AcqRel);
                self.era.fetch_add(1, Ordering::AcqRel);
                self.taken_over.notify_waiters();
                seen.refused = None;
                match before.system == system {
                    true => {
                        tracing::warn!(timeline, before = before.timeline, "another primary has taken over");
                    }
                    false => tracing::warn!(
                        system = %Shown(system), before = %Shown(before.system),
                        "another database answers in place of the one from before"
                    ),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Makes the pool forget the connections of a generation, because one of them heard that its server ends.
    pub(super) fn retire(&self, admission: Admission) {
        let next = admission.generation + 1;
        // Only once: all of them hear it, and new ones may have come since the first did.
        let retired =
            self.generation.compare_exchange(admission.generation, next, Ordering::AcqRel, Ordering::Relaxed);
        if retired.is_ok() {
            tracing::debug!(generation = next, "all connections to the database are renewed");
        }
    }

    /// Whether a connection may be taken from the pool and put back into it.
    pub(super) fn is_fit(&self, admission: Admission) -> bool {
        self.generation.load(Ordering::Acquire) == admission.generation
    }

    /// Whether another primary has taken over since, so that nothing may be asked of the connection's server, and what
    /// it answers does not count.
    pub(super) fn is_superseded(&self, admission: Admission) -> bool {
        self.era() != admission.era
    }

    /// Waits until another primary has taken over from a connection's server.
    pub(super) async fn superseded(&self, admission: Admission) {
        loop {
            // Made before the look, so that no change is missed in between.
            let taken_over = self.taken_over.notified();
            if self.is_superseded(admission) {
                return;
            }
            taken_over.await;
        }
    }

    /// A number that changes when another primary or another database takes over.
    pub(super) fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the role or the database is set to is the operator's decision, but one to know about.
fn warn_of_losses(standing: &Standing) {
    let setting = standing.synchronous_commit.as_str();
    match setting {
        "off" => tracing::warn!(
            synchronous_commit = setting,
            "acknowledged sends can be lost in a crash of the database"
        ),
        "local" | "remote_write" if standing.has_synchronous_standbys => tracing::warn!(
            synchronous_commit = setting,
            "acknowledged sends can be lost when a standby takes over"
        ),
        _ => {}
    }
}

/// A system identifier as `pg_controldata` shows it.
struct Shown(Option<i64>);

impl fmt::Display for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(system) => write!(formatter, "{}", system.cast_unsigned()),
            None => formatter.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(system: i64, timeline: i64) -> Standing {
        Standing {
            in_recovery: false,
            read_only: false,
            synchronous_commit: "on".to_owned(),
            has_synchronous_standbys: false,
            position: Some(Position { system: Some(system), timeline }),
        }
    }

    #[test]
    fn a_newer_primary_supersedes_the_connections_to_the_older_which_is_then_refused() {
        let guard = Guard::default();
        let old = guard.admit(&primary(7, 1)).expect("an admission");
        let also_old = guard.admit(&primary(7, 1)).expect("an admission");
        assert_eq!(old, also_old);
        assert!(guard.is_fit(old) && !guard.is_superseded(old));

        let new = guard.admit(&primary(7, 2)).expect("an admission");

        assert!(!guard.is_fit(old) && guard.is_superseded(old));
        assert!(guard.is_fit(new) && !guard.is_superseded(new));
        let refused = guard.admit(&primary(7, 1));
        assert_eq!(refused, Err(Refusal::OldPrimary { timeline: 1, newest: 2 }));
        assert!(guard.is_fit(new));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_it_is_told_that_another_primary_has_taken_over() {
        let guard = Guard::default();
        let old = guard.admit(&primary(7, 1)).expect("an admission");
        let mut superseded = Box::pin(guard.superseded(old));
        assert!(futures_util::poll!(&mut superseded).is_pending());
        guard.retire(old);
        assert!(futures_util::poll!(&mut superseded).is_pending());
        guard.hear_of(&primary(7, 2));
        superseded.await;
        guard.superseded(old).await;
    }

    #[test]
    fn a_standby_and_a_read_only_server_are_refused() {
        let guard = Guard::default();
        let standby = Standing { in_recovery: true, position: None, ..primary(7, 1) };
        assert_eq!(guard.admit(&standby), Err(Refusal::Standby));
        let read_only = Standing { read_only: true, ..primary(7, 1) };
        assert_eq!(guard.admit(&read_only), Err(Refusal::ReadOnly));
    }

    #[test]
    fn another_system_takes_over_whatever_its_timeline_and_keeps_its_own_highest() {
        let guard = Guard::default();
        let before = guard.admit(&primary(7, 5)).expect("an admission");
        let after = guard.admit(&primary(8, 1)).expect("an admission");
        assert!(guard.is_superseded(before) && guard.is_fit(after));
        assert!(guard.admit(&primary(7, 4)).is_err());
        assert!(guard.is_fit(after));
        assert!(guard.admit(&primary(7, 5)).is_ok());
        assert!(guard.is_superseded(after));
    }

    #[test]
    fn what_is_heard_of_counts_only_for_the_same_system() {
        let guard = Guard::default();
        guard.hear_of(&primary(9, 9));
        let admission = guard.admit(&primary(7, 1)).expect("an admission");
        guard.hear_of(&primary(8, 3));
        guard.hear_of(&Standing { in_recovery: true, ..primary(7, 2) });
        assert!(guard.is_fit(admission));
        guard.hear_of(&primary(7, 2));
        assert!(guard.is_superseded(admission));
    }

    #[test]
    fn an_ending_server_retires_its_connections_once_and_does_not_doubt_their_answers() {
        let guard = Guard::default();
        let before = guard.admit(&primary(7, 1)).expect("an admission");
        guard.retire(before);
        let after = guard.admit(&primary(7, 1)).expect("an admission");
        guard.retire(before);
        assert!(!guard.is_fit(before) && !guard.is_superseded(before));
        assert!(guard.is_fit(after));
    }

    #[test]
    fn a_server_that_does_not_tell_its_timeline_is_used_as_ever() {
        let guard = Guard::default();
        let silent = Standing { position: None, ..primary(7, 1) };
        let first = guard.admit(&silent).expect("an admission");
        assert_eq!(guard.admit(&silent), Ok(first));
        assert!(guard.is_fit(first));
    }
}

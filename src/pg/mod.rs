//! Postgres: the only place with SQL, and the only place that takes a connection.
//!
//! [`Database::connect`] is the gate: it waits for a turn, takes a connection from the pool, and gives a
//! [`Connection`] that one operation holds. What a connection can do stands in one file a subject.

mod announcements;
mod archived;
mod browse;
mod catalog;
mod cleaner;
mod clients;
mod counts;
mod database;
mod dead_letter;
pub mod embedded;
mod error;
mod failures;
mod guard;
mod hold;
mod hosts;
mod install;
mod keyed;
mod keyed_transaction;
mod layout;
mod link;
mod lookout;
mod maintenance;
mod manager;
mod metrics;
mod monitor;
mod policies;
mod pop;
mod prepared;
mod queues;
mod read;
mod redrive;
mod refused;
mod refused_reads;
mod retention;
mod row;
mod schema;
mod send;
mod send_group;
mod sequences;
mod settle;
mod settle_many;
mod standing;
mod statement;
mod texts;
mod tls;
mod topics;
mod transaction;
mod turns;
mod unrenderable;
mod update_policy;
mod upgrade;
mod value;
mod version;
mod watch;

pub use announcements::{Announcements, Line, Pulse};
pub use archived::{ArchivedKey, TakenStep};
pub use browse::Found;
pub use cleaner::remove_expired_keys;
pub use clients::{ClientRows, ClientState};
pub use database::{Connection, Database, PoolLimits, PoolUse};
pub use error::{
    is_locked_table, is_of_a_row, is_swallowed, may_be_one_items_fault, not_committed, swallowed,
};
pub use install::CARRIED_VERSION;
pub use keyed::KeyPatience;
pub use monitor::{DatabaseState, Monitor};
pub use policies::{Policies, follow_policies};
pub use redrive::{DeadLetterKey, FoundDeadLetters, RedriveStep};
pub use retention::remove_archived;
pub use send_group::{GroupFailure, GroupPart, GroupPatience, StoredGroup};
pub use settle_many::FirstLook;
pub use statement::Sight;
pub use turns::{SLOW, Subject};
pub use upgrade::{Upgrade, Upgrader};
pub use version::{Feature, Installation, InstalledBy};
pub use watch::{Glance, Sighting};

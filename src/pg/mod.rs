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
mod prepared;
mod queues;
mod read;
mod redrive;
mod row;
mod schema;
mod send;
mod sequences;
mod settle;
mod settle_many;
mod standing;
mod statement;
mod texts;
mod tls;
mod topics;
mod unrenderable;
mod upgrade;
mod value;
mod version;
mod watch;

pub use announcements::{Announcements, Line};
pub use archived::{ArchivedKey, TakenStep};
pub use browse::Found;
pub use cleaner::remove_expired_keys;
pub use clients::{ClientRows, ClientState};
pub use database::{Connection, Database, PoolLimits, PoolUse};
pub use error::{is_locked_table, may_be_one_items_fault};
pub use install::CARRIED_VERSION;
pub use keyed::KeyPatience;
pub use monitor::{DatabaseState, Monitor};
pub use redrive::{DeadLetterKey, FoundDeadLetters, RedriveStep};
pub use settle_many::FirstLook;
pub use upgrade::{Upgrade, Upgrader};
pub use version::{Feature, Installation, InstalledBy};
pub use watch::Sighting;

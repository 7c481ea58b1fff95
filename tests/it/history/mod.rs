//! Histories: every call and answer of a busy, disturbed run is recorded, and a checker says whether they keep the promises.
//!
//! `live` makes histories with real servers; `checker` judges them, and is itself tested with stories of broken servers.

mod checker;
mod live;
mod operators;
mod record;
mod report;

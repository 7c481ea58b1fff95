//! Stories of broken servers, each beside its healthy twin: a checker that finds nothing in them is worth nothing.

mod deliveries;
mod keys;
mod neighbours;
mod purges;
mod sends;
mod settles;

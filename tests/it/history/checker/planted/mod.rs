//! Stories of broken servers, each beside its healthy twin: a checker that finds nothing in them is worth nothing.

mod deliveries;
mod neighbours;
mod sends;
mod settles;

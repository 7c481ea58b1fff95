//! Stories of broken servers, each beside its healthy twin: a checker that finds nothing in them is worth nothing.

mod dead_letters;
mod deliveries;
mod keys;
mod neighbours;
mod purges;
mod sends;
mod settles;

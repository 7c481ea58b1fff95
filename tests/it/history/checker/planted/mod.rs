//! Stories of broken servers, each beside its healthy twin: a checker that finds nothing in them is worth nothing.

mod dead_letters;
mod deliveries;
mod elsewhere;
mod keys;
mod lists;
mod moves;
mod neighbours;
mod policies;
mod purges;
mod sends;
mod settles;

//! Nothing but a place for tests and figures.

/// The programs of the README, which have to compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

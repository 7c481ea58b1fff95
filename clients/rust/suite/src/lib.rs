//! Nothing but a place for tests and figures.

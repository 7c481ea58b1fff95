//! JSON texts on their way to Postgres: checked and measured in one pass, never parsed into a tree.
//!
//! A message body or header object goes from the wire to `::jsonb` as the text it came in. [`scan`] says
//! beforehand whether Postgres will take it and how long it will be when read back, because one bad item would
//! abort the statement it shares with others, and because the text may grow: `1e308` comes back as 309 digits.
//!
//! The grammar is that of Postgres's own JSON lexer, narrowed by three rules: at most [`MAX_DEPTH`] levels, at most
//! [`MAX_NUMBER_DIGITS`] digits a number, and nothing `jsonb` cannot hold (`\u0000`, half a surrogate pair). The
//! length of the text is the caller's to bound.

mod error;
mod member;
mod scanner;
#[cfg(test)]
mod tests;

pub use error::{Expected, JsonError, Problem};
pub use member::{Member, quote, top_level_string, with_member};

use scanner::Scanner;

/// The most objects and arrays that may be open at once.
pub const MAX_DEPTH: u32 = 64;

/// The most digits a number may have when written out without an exponent; also the largest exponent either way.
pub const MAX_NUMBER_DIGITS: usize = 1_000;

/// What a scan found out about a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes of the text as Postgres renders it (`jsonb::text`): exact, except that every repetition of a key in
    /// one object is counted although `jsonb` keeps only the last, so then it is an upper bound.
    pub rendered_bytes: usize,
    /// What the outermost value is.
    pub kind: JsonKind,
}

/// The kinds of JSON value, as `jsonb_typeof` tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JsonKind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// `-1.5e3`
    Number,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
}

/// Checks that a text is one JSON value that `jsonb` takes, and measures it.
///
/// Allocates nothing and reads the text once.
///
/// # Errors
///
/// The first [`Problem`] from the left and where it is. The error never quotes the text.
pub fn scan(text: &str) -> Result<Scanned, JsonError> {
    let mut scanner = Scanner::new(text);
    scanner.skip_whitespace();
    if scanner.at_end() {
        return Err(scanner.error(Problem::Empty));
    }
    let kind = scanner.value()?;
    scanner.skip_whitespace();
    if !scanner.at_end() {
        return Err(scanner.error(Problem::TrailingText));
    }
    Ok(Scanned { rendered_bytes: scanner.rendered_bytes(), kind })
}

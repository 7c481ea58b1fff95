//! Why a JSON text is refused, and where.

use thiserror::Error;

use super::{MAX_DEPTH, MAX_NUMBER_DIGITS};

/// A JSON text is refused: the problem and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{problem} at line {line} column {column}")]
pub struct JsonError {
    /// Bytes before the problem.
    pub offset: usize,
    /// Line of the problem, from 1. Lines end with `\n`.
    pub line: u32,
    /// Characters (not bytes) from the start of the line, from 1.
    pub column: u32,
    /// What is wrong there.
    pub problem: Problem,
}

impl JsonError {
    /// Works out line and column of an offset, which lies on a character boundary of the text.
    #[cold]
    pub(super) fn new(text: &str, offset: usize, problem: Problem) -> Self {
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let newlines = before.bytes().filter(|&byte| byte == b'\n').count();
        let characters = before[line_start..].chars().count();
        Self { offset, line: one_based(newlines), column: one_based(characters), problem }
    }
}

/// What is wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Problem {
    /// There is nothing but whitespace.
    #[error("expected a value, but the text is empty")]
    Empty,
    /// Something else stands where only these may.
    #[error("expected {0}")]
    Unexpected(Expected),
    /// The text ends where it must go on.
    #[error("unexpected end of text, expected {0}")]
    UnexpectedEnd(Expected),
    /// A string has no closing quote; the place is its opening quote.
    #[error("string without a closing quote")]
    UnterminatedString,
    /// A character below U+0020 stands unescaped in a string.
    #[error("control character not escaped")]
    ControlCharacter,
    /// A backslash does not begin an escape that JSON knows.
    #[error("invalid escape")]
    BadEscape,
    /// `\u0000`, which is JSON but cannot be stored.
    #[error("\\u0000 cannot be stored")]
    NulEscape,
    /// A `\uD800` to `\uDFFF` is not part of a pair.
    #[error("surrogate escape without its other half")]
    LoneSurrogate,
    /// A number is malformed: `01`, `1.`, `-`, `1e`.
    #[error("malformed number")]
    BadNumber,
    /// A number would take more than [`MAX_NUMBER_DIGITS`] digits without an exponent.
    #[error("number of more than {MAX_NUMBER_DIGITS} digits")]
    NumberTooLong,
    /// More than [`MAX_DEPTH`] objects and arrays are open.
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Something other than whitespace follows the value.
    #[error("unexpected text after the value")]
    TrailingText,
}

/// What may stand at a place of a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Expected {
    /// Any value.
    #[error("a value")]
    Value,
    /// The first element of an array, or its end.
    #[error("a value or ']'")]
    ValueOrBracket,
    /// The key of a member.
    #[error("a key in quotes")]
    Key,
    /// The first member of an object, or its end.
    #[error("a key in quotes or '}}'")]
    KeyOrBrace,
    /// What separates a key from its value.
    #[error("':'")]
    Colon,
    /// After a member of an object.
    #[error("',' or '}}'")]
    CommaOrBrace,
    /// After an element of an array.
    #[error("',' or ']'")]
    CommaOrBracket,
}

fn one_based(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1)
}

//! The scanner: a cursor over the text that checks what it passes and keeps the length of the rendering.

use super::{Expected, JsonError, JsonKind, MAX_DEPTH, MAX_NUMBER_DIGITS, Problem};

/// A cursor over a JSON text.
///
/// The rendering has the length of the text, plus `added`, minus `removed`: so plain bytes cost no bookkeeping.
pub(super) struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    added: usize,
    removed: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0, added: 0, removed: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Bytes of the whole text as rendered; meaningful at its end.
    pub(super) fn rendered_bytes(&self) -> usize {
        self.bytes.len() + self.added - self.removed
    }

    pub(super) fn error(&self, problem: Problem) -> JsonError {
        JsonError::new(self.text, self.at, problem)
    }

    #[inline]
    pub(super) fn skip_whitespace(&mut self) {
        let start = self.at;
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.removed += self.at - start;
    }

    /// Passes a byte, if it is the next one.
    #[inline]
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Passes one value with all it contains. Whitespace before it must have been skipped.
    pub(super) fn value(&mut self) -> Result<JsonKind, JsonError> {
        let outermost = self.kind_of_next(Expected::Value)?;
        let mut open = OpenContainers::default();
        let mut kind = outermost;
        loop {
            match kind {
                JsonKind::Object => {
                    self.open(&mut open, true)?;
                    if !self.take(b'}') {
                        self.key(Expected::KeyOrBrace)?;
                        kind = self.kind_of_next(Expected::Value)?;
                        continue;
                    }
                    open.pop();
                }
                JsonKind::Array => {
                    self.open(&mut open, false)?;
                    if !self.take(b']') {
                        kind = self.kind_of_next(Expected::ValueOrBracket)?;
                        continue;
                    }
                    open.pop();
                }
                JsonKind::String => {
                    self.string()?;
                }
                JsonKind::Number => self.number()?,
                JsonKind::Bool | JsonKind::Null => {}
            }
            if !self.go_on(&mut open)? {
                return Ok(outermost);
            }
            kind = self.kind_of_next(Expected::Value)?;
        }
    }

    /// Passes a key, its colon and the whitespace around the colon; returns the key as written, without its quotes.
    #[inline]
    pub(super) fn key(&mut self, expected: Expected) -> Result<&'a str, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected(expected));
        }
        let key = self.string()?;
        self.skip_whitespace();
        if !self.take(b':') {
            return Err(self.unexpected(Expected::Colon));
        }
        self.added += 1;
        self.skip_whitespace();
        Ok(key)
    }

    /// Passes a string from quote to quote; returns what is written between them.
    #[inline]
    fn string(&mut self) -> Result<&'a str, JsonError> {
        let opening_quote = self.at;
        self.at += 1;
        loop {
            self.at += plain_bytes(&self.bytes[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    let written = &self.text[opening_quote + 1..self.at];
                    self.at += 1;
                    return Ok(written);
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.error(Problem::ControlCharacter)),
                None => return Err(JsonError::new(self.text, opening_quote, Problem::UnterminatedString)),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let (character, written) = match decode_escape(&self.bytes[self.at..]) {
            Ok(decoded) => decoded,
            Err(problem) => return Err(self.error(problem)),
        };
        self.at += written;
        self.added += rendered_len(character);
        self.removed += written;
        Ok(())
    }

    /// Passes a number. Postgres writes it out without an exponent and keeps the zeros after its point.
    #[inline]
    fn number(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        let fail = |problem| JsonError::new(self.text, start, problem);
        let negative = self.bytes[start] == b'-';
        let whole_start = start + usize::from(negative);
        let mut end = self.end_of_digits(whole_start);
        let whole = end - whole_start;
        if whole == 0 || (whole > 1 && self.bytes[whole_start] == b'0') {
            return Err(fail(Problem::BadNumber));
        }
        let mut fraction = 0;
        if self.bytes.get(end) == Some(&b'.') {
            let fraction_start = end + 1;
            end = self.end_of_digits(fraction_start);
            fraction = end - fraction_start;
            if fraction == 0 {
                return Err(fail(Problem::BadNumber));
            }
        }
        let mantissa = &self.bytes[whole_start..end];

        let (mut whole_digits, mut fraction_digits) = (whole, fraction);
        if let Some(b'e' | b'E') = self.bytes.get(end) {
            let sign = self.bytes.get(end + 1);
            let exponent_start = end + 1 + usize::from(matches!(sign, Some(b'+' | b'-')));
            end = self.end_of_digits(exponent_start);
            if end == exponent_start {
                return Err(fail(Problem::BadNumber));
            }
            let exponent =
                bounded_value(&self.bytes[exponent_start..end]).ok_or(fail(Problem::NumberTooLong))?;
            // The digits before the first that is not zero do not move the point's left side.
            let zeros = leading_zeros(mantissa);
            if sign == Some(&b'-') {
                whole_digits = whole.saturating_sub(zeros).saturating_sub(exponent);
                fraction_digits = fraction + exponent;
            } else {
                whole_digits = (whole + exponent).saturating_sub(zeros);
                fraction_digits = fraction.saturating_sub(exponent);
            }
            if whole_digits == 0 || zeros == whole + fraction {
                whole_digits = 1;
            }
        }
        if whole_digits + fraction_digits > MAX_NUMBER_DIGITS {
            return Err(fail(Problem::NumberTooLong));
        }
        let minus = negative && mantissa.iter().any(|digit| matches!(digit, b'1'..=b'9'));
        let point = fraction_digits > 0;
        self.added += usize::from(minus) + whole_digits + usize::from(point) + fraction_digits;
        self.removed += end - start;
        self.at = end;
        Ok(())
    }

    /// Tells what the next value is, and passes it if it is a word.
    #[inline]
    fn kind_of_next(&mut self, expected: Expected) -> Result<JsonKind, JsonError> {
        match self.peek() {
            Some(b'"') => Ok(JsonKind::String),
            Some(b'-' | b'0'..=b'9') => Ok(JsonKind::Number),
            Some(b'{') => Ok(JsonKind::Object),
            Some(b'[') => Ok(JsonKind::Array),
            Some(b't') if self.take_word(b"true") => Ok(JsonKind::Bool),
            Some(b'f') if self.take_word(b"false") => Ok(JsonKind::Bool),
            Some(b'n') if self.take_word(b"null") => Ok(JsonKind::Null),
            _ => Err(self.unexpected(expected)),
        }
    }

    fn take_word<const LENGTH: usize>(&mut self, word: &[u8; LENGTH]) -> bool {
        let found = self.bytes[self.at..].first_chunk() == Some(word);
        self.at += if found { LENGTH } else { 0 };
        found
    }

    #[inline]
    fn open(&mut self, open: &mut OpenContainers, object: bool) -> Result<(), JsonError> {
        if !open.push(object) {
            return Err(self.error(Problem::TooDeep));
        }
        self.at += 1;
        self.skip_whitespace();
        Ok(())
    }

    /// Goes from the end of a value to the start of the next, closing containers; false if none is open any more.
    #[inline]
    fn go_on(&mut self, open: &mut OpenContainers) -> Result<bool, JsonError> {
        while let Some(object) = open.innermost_is_object() {
            self.skip_whitespace();
            match (self.peek(), object) {
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    open.pop();
                }
                (Some(b','), _) => {
                    self.at += 1;
                    self.added += 1;
                    self.skip_whitespace();
                    if object {
                        self.key(Expected::Key)?;
                    }
                    return Ok(true);
                }
                (_, true) => return Err(self.unexpected(Expected::CommaOrBrace)),
                (_, false) => return Err(self.unexpected(Expected::CommaOrBracket)),
            }
        }
        Ok(false)
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn end_of_digits(&self, start: usize) -> usize {
        let mut end = start;
        while let Some(b'0'..=b'9') = self.bytes.get(end) {
            end += 1;
        }
        end
    }

    #[cold]
    fn unexpected(&self, expected: Expected) -> JsonError {
        let problem =
            if self.at_end() { Problem::UnexpectedEnd(expected) } else { Problem::Unexpected(expected) };
        self.error(problem)
    }
}

/// The objects and arrays around a place, one bit each.
#[derive(Default)]
struct OpenContainers {
    objects: u64,
    depth: u32,
}

const _: () = assert!(MAX_DEPTH <= u64::BITS);

impl OpenContainers {
    /// Opens a container; false if too many are open.
    fn push(&mut self, object: bool) -> bool {
        self.objects = self.objects << 1 | u64::from(object);
        self.depth += 1;
        self.depth <= MAX_DEPTH
    }

    fn pop(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
    }

    fn innermost_is_object(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.objects & 1 == 1)
    }
}

/// Decodes the escape that a text begins with: the character and how many bytes spell it.
pub(super) fn decode_escape(bytes: &[u8]) -> Result<(char, usize), Problem> {
    let character = match bytes.get(1) {
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return decode_unicode_escape(bytes),
        _ => return Err(Problem::BadEscape),
    };
    Ok((character, 2))
}

fn decode_unicode_escape(bytes: &[u8]) -> Result<(char, usize), Problem> {
    const LENGTH: usize = r"\uXXXX".len();
    let first = code_unit(bytes).ok_or(Problem::BadEscape)?;
    if first == 0 {
        return Err(Problem::NulEscape);
    }
    if let Some(character) = char::from_u32(first.into()) {
        return Ok((character, LENGTH));
    }
    let second = code_unit(&bytes[LENGTH..]).ok_or(Problem::LoneSurrogate)?;
    match char::decode_utf16([first, second]).next() {
        Some(Ok(character)) => Ok((character, 2 * LENGTH)),
        _ => Err(Problem::LoneSurrogate),
    }
}

/// The UTF-16 code unit that a text beginning with `\uXXXX` spells.
fn code_unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(br"\u")?.first_chunk::<4>()?;
    let mut unit = 0;
    for &digit in digits {
        let value = char::from(digit).to_digit(16)?;
        unit = unit << 4 | u16::try_from(value).ok()?;
    }
    Some(unit)
}

/// Bytes that Postgres writes for a character of a string.
fn rendered_len(character: char) -> usize {
    match character {
        '"' | '\\' | '\u{8}' | '\u{c}' | '\n' | '\r' | '\t' => 2,
        '\0'..' ' => r"\u001f".len(),
        _ => character.len_utf8(),
    }
}

/// How many bytes at the start of a text stand for themselves in a string: all but quotes, backslashes and control
/// characters. Eight bytes at a time.
#[inline]
fn plain_bytes(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH_BITS: u64 = ONES << 7;
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk() {
        // `x - n * ONES & !x & HIGH_BITS` marks the bytes of x below n; a borrow marks wrongly only above a right mark.
        let word = u64::from_le_bytes(*word);
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
        let quote = quote.wrapping_sub(ONES) & !quote;
        let backslash = backslash.wrapping_sub(ONES) & !backslash;
        let special = (control | quote | backslash) & HIGH_BITS;
        if special != 0 {
            return at + (special.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = bytes.get(at)
        && !matches!(byte, ..b' ' | b'"' | b'\\')
    {
        at += 1;
    }
    at
}

/// The value of some digits, unless it is above [`MAX_NUMBER_DIGITS`].
fn bounded_value(digits: &[u8]) -> Option<usize> {
    let mut value = 0;
    for digit in digits {
        value = value * 10 + usize::from(digit - b'0');
        if value > MAX_NUMBER_DIGITS {
            return None;
        }
    }
    Some(value)
}

/// How many zeros come before the first other digit of a mantissa (`0.012` has two).
fn leading_zeros(mantissa: &[u8]) -> usize {
    let zeros = mantissa.iter().take_while(|byte| matches!(byte, b'0' | b'.'));
    zeros.filter(|&&byte| byte == b'0').count()
}

//! Members of an object text: finding one, adding one.

use std::borrow::Cow;

use super::{Expected, JsonKind, scanner::Scanner, scanner::decode_escape};

/// The value of a member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member<'a> {
    /// A string, without its quotes and escapes.
    String(Cow<'a, str>),
    /// Any other value.
    Other,
}

/// Looks up a member of an object text; of repeated keys the last counts, as in `jsonb`.
///
/// Members of nested objects are not looked at. None if there is no such member, or if the text, which should have
/// passed [`scan`](super::scan), is not an object.
pub fn top_level_string<'a>(object_text: &'a str, key: &str) -> Option<Member<'a>> {
    let mut scanner = Scanner::new(object_text);
    scanner.skip_whitespace();
    if !scanner.take(b'{') {
        return None;
    }
    let mut found = None;
    loop {
        scanner.skip_whitespace();
        let written_key = scanner.key(Expected::KeyOrBrace).ok()?;
        let start = scanner.position();
        let kind = scanner.value().ok()?;
        if unescape(written_key)? == key {
            found = Some((kind, &object_text[start..scanner.position()]));
        }
        scanner.skip_whitespace();
        if !scanner.take(b',') {
            break;
        }
    }
    match found? {
        (JsonKind::String, quoted) => Some(Member::String(unescape(&quoted[1..quoted.len() - 1])?)),
        _ => Some(Member::Other),
    }
}

/// Writes a string as JSON text, quotes included, exactly as Postgres renders it.
///
/// The caller keeps U+0000 out: its escape is JSON, but `jsonb` refuses it.
pub fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    push_quoted(&mut quoted, value);
    quoted
}

/// Adds a string as the last member of an object text, so that it wins over an earlier member of the same key.
///
/// The text must have passed [`scan`](super::scan) as an object; the key and the value are plain strings.
pub fn with_member(object_text: &str, key: &str, value: &str) -> String {
    let object = object_text.trim_end();
    debug_assert!(object.ends_with('}'), "with_member needs an object");
    let members = object.strip_suffix('}').unwrap_or(object).trim_end();
    let mut text = String::with_capacity(members.len() + key.len() + value.len() + 9);
    text.push_str(members);
    // No value ends with an opening brace, so this one is the object's own.
    if !members.ends_with('{') {
        text.push_str(", ");
    }
    push_quoted(&mut text, key);
    text.push_str(": ");
    push_quoted(&mut text, value);
    text.push('}');
    text
}

fn push_quoted(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\0'..' ' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => text.push(character),
        }
    }
    text.push('"');
}

/// Replaces the escapes of what is written between two quotes; None if one is invalid.
fn unescape(written: &str) -> Option<Cow<'_, str>> {
    let Some(first) = written.find('\\') else { return Some(Cow::Borrowed(written)) };
    let mut text = String::with_capacity(written.len());
    let mut rest = written;
    let mut next = Some(first);
    while let Some(backslash) = next {
        let (plain, escaped) = rest.split_at(backslash);
        let (character, length) = decode_escape(escaped.as_bytes()).ok()?;
        text.push_str(plain);
        text.push(character);
        rest = &escaped[length..];
        next = rest.find('\\');
    }
    text.push_str(rest);
    Some(Cow::Owned(text))
}

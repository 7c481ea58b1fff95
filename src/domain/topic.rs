//! Routing keys and the patterns that match them, by the same rules as pgmq's own validators.

use super::{Invalid, Kind};

/// The most characters that a routing key or a pattern may have.
pub const MAX_CHARACTERS: usize = 255;

/// The key under which a message is sent to topics (`pgmq.validate_routing_key`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutingKey(String);

impl RoutingKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RoutingKey {
    type Error = Invalid;

    fn try_from(key: String) -> Result<Self, Invalid> {
        if key.is_empty() {
            return Err(Invalid::new(Kind::MissingField, "a routing key is needed"));
        }
        let refuse = |why: String| Invalid::new(Kind::InvalidRoutingKey, format!("a routing key {why}"));
        check_segments(&key, "").map_err(refuse)?;
        Ok(Self(key))
    }
}

/// The pattern of a topic binding (`pgmq.validate_topic_pattern`).
///
/// `*` stands for one or more characters other than a dot, also inside a segment; `#` stands for any text,
/// dots and nothing included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Pattern {
    type Error = Invalid;

    fn try_from(pattern: String) -> Result<Self, Invalid> {
        if pattern.is_empty() {
            return Err(Invalid::new(Kind::MissingField, "a pattern is needed"));
        }
        let refuse = |why: String| Invalid::new(Kind::InvalidPattern, format!("a pattern {why}"));
        check_segments(&pattern, "*#").map_err(refuse)?;
        for adjacent in ["**", "##", "*#", "#*"] {
            if pattern.contains(adjacent) {
                return Err(refuse(format!("must not contain the adjacent wildcards {adjacent}")));
            }
        }
        Ok(Self(pattern))
    }
}

fn check_segments(text: &str, wildcards: &str) -> Result<(), String> {
    if text.chars().count() > MAX_CHARACTERS {
        return Err(format!("has at most {MAX_CHARACTERS} characters"));
    }
    let allowed = |character: char| {
        character.is_ascii_alphanumeric() || "._-".contains(character) || wildcards.contains(character)
    };
    if let Some(character) = text.chars().find(|&character| !allowed(character)) {
        return Err(format!("must not contain {character:?}"));
    }
    if text.starts_with('.') || text.ends_with('.') || text.contains("..") {
        return Err("must not have empty segments (a dot at an end, or two together)".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_keys_are_dotted_words_without_wildcards() {
        for key in ["a", "logs.error", "app.user-service.auth_2"] {
            assert!(RoutingKey::try_from(key.to_owned()).is_ok(), "{key}");
        }
        for key in ["", ".a", "a.", "a..b", "a b", "logs.*", "logs.#", "ü", &"a".repeat(256)] {
            assert!(RoutingKey::try_from(key.to_owned()).is_err(), "{key}");
        }
    }

    #[test]
    fn patterns_take_single_wildcards() {
        for pattern in ["#", "logs.*", "lo#", "a.*.#", "*.error"] {
            assert!(Pattern::try_from(pattern.to_owned()).is_ok(), "{pattern}");
        }
        for pattern in ["", "**", "##", "*#", "#*", ".a", "a.", "a..b", "a!"] {
            assert!(Pattern::try_from(pattern.to_owned()).is_err(), "{pattern}");
        }
    }
}

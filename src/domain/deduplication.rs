//! Ids under which something is stored at most once within a window of time.

use super::{Invalid, Kind};

/// The most bytes of a deduplication id.
pub const MAX_DEDUPLICATION_ID_BYTES: usize = 128;

/// A caller's own name for a message or a transaction: 1 to 128 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeduplicationId(String);

impl DeduplicationId {
    /// Takes an id; the empty text is none.
    ///
    /// # Errors
    /// `InvalidDeduplicationId` for more than 128 bytes, and for control characters.
    pub fn parse(text: String) -> Result<Option<Self>, Invalid> {
        let refuse = |description: String| Invalid::new(Kind::InvalidDeduplicationId, description);
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > MAX_DEDUPLICATION_ID_BYTES {
            let bytes = text.len();
            let description = format!(
                "a deduplication id has at most {MAX_DEDUPLICATION_ID_BYTES} bytes; this one has {bytes}"
            );
            return Err(refuse(description).with("limit", MAX_DEDUPLICATION_ID_BYTES));
        }
        if text.contains(char::is_control) {
            return Err(refuse("a deduplication id must not contain control characters".to_owned()));
        }
        Ok(Some(Self(text)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message that is in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Its id there.
    pub msg_id: i64,
    /// An earlier send under the same deduplication id has stored it.
    pub deduplicated: bool,
}

impl Sent {
    /// A message that was stored just now.
    pub fn now(msg_id: i64) -> Self {
        Self { msg_id, deduplicated: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_texts_without_control_characters() {
        let parse = |text: &str| DeduplicationId::parse(text.to_owned()).map(|id| id.is_some());
        assert_eq!(parse(""), Ok(false));
        for good in ["a", " ", "order 17/ä", &"x".repeat(128)] {
            assert_eq!(parse(good), Ok(true), "{good:?}");
        }
        for bad in ["\0", "a\nb", "\u{7f}", "\u{85}", &"x".repeat(129), &"ä".repeat(65)] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}

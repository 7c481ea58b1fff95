//! Who calls: what a caller names itself, where it is, and what it does with a queue.

use std::sync::Arc;
use std::time::Duration;

use super::{Invalid, Kind, Timestamp};

/// The most bytes of a caller's name for itself.
pub const MAX_NAME_BYTES: usize = 128;

/// How long a caller is remembered after its last call.
pub const REMEMBERED: Duration = Duration::from_secs(60);

/// Checks what a caller calls itself: at most 128 bytes of printable ASCII; the empty name is none.
///
/// # Errors
/// `InvalidClientName`.
pub fn parse_name(name: &[u8]) -> Result<&str, Invalid> {
    if name.len() > MAX_NAME_BYTES {
        let description =
            format!("a client's name has at most {MAX_NAME_BYTES} bytes; this one has {}", name.len());
        return Err(Invalid::new(Kind::InvalidClientName, description).with("limit", MAX_NAME_BYTES));
    }
    let is_printable = name.iter().all(|byte| matches!(byte, b' '..=b'~'));
    match std::str::from_utf8(name) {
        Ok(name) if is_printable => Ok(name),
        _ => Err(Invalid::new(Kind::InvalidClientName, "a client's name is printable ASCII")),
    }
}

/// What a caller does with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientRole {
    /// It takes messages, settles them, or both.
    Consumer,
    /// It sends messages.
    Producer,
}

impl ClientRole {
    /// The role as the servers' table has it; words are ordered like roles, and so are lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consumer => "CONSUMER",
            Self::Producer => "PRODUCER",
        }
    }

    /// The role of such a word.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Consumer, Self::Producer].into_iter().find(|role| role.as_str() == word)
    }
}

/// Who makes a call.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What it calls itself, if it does.
    pub name: Option<Arc<str>>,
    /// Where it is, as the server sees it.
    pub address: Arc<str>,
}

/// A caller of the last 60 s, in one role, of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// What it calls itself, or empty.
    pub name: String,
    /// What it does.
    pub role: ClientRole,
    /// The queue's name; empty for sends to topics.
    pub queue: String,
    /// Where it is, as its server sees it.
    pub address: String,
    /// The server that it calls.
    pub replica: String,
    /// Messages of its streams that are not settled, or not answered.
    pub in_flight: i32,
    /// When it was first seen, without a break of 60 s since.
    pub since: Timestamp,
    /// When it was last seen.
    pub last_seen: Timestamp,
}

impl Client {
    /// Its place in the list, which is ordered by these bytes.
    pub fn key(&self) -> [&str; 5] {
        [&self.name, self.role.as_str(), &self.queue, &self.address, &self.replica]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_printable() {
        for good in ["", "worker-1", "a b \"c\" 'd'; --", &"x".repeat(128)] {
            assert_eq!(parse_name(good.as_bytes()).ok(), Some(good));
        }
        for bad in ["a\tb", "über", "\u{7f}", &"x".repeat(129)] {
            assert_eq!(parse_name(bad.as_bytes()).map_err(|bad| bad.kind), Err(Kind::InvalidClientName));
        }
    }

    #[test]
    fn words_are_ordered_like_roles() {
        let roles = [ClientRole::Consumer, ClientRole::Producer];
        assert!(roles.is_sorted() && roles.map(ClientRole::as_str).is_sorted());
        assert_eq!(roles.map(|role| ClientRole::of_word(role.as_str())), roles.map(Some));
        assert_eq!(ClientRole::of_word("consumer"), None);
    }
}

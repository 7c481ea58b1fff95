//! Queue names: a strict form for making one, a lenient one for using what plain SQL made.

use std::fmt;

use super::{Invalid, Kind};

/// The most characters that a queue name may have; pgmq refuses longer ones.
pub const MAX_CHARACTERS: usize = 47;

/// The name of a queue that may exist, in exactly the letters under which `pgmq.meta` lists it.
///
/// Plain SQL can make names that `CreateQueue` refuses (capitals, spaces, other scripts); they stay usable.
/// Only what pgmq itself cannot address is refused: empty names, more than 47 characters, and `$`, `;`,
/// `--`, `'` or NUL inside.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName(String);

impl QueueName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text is such a name.
    pub fn is_good(name: &str) -> bool {
        check_existing(name).is_ok()
    }
}

impl TryFrom<String> for QueueName {
    type Error = Invalid;

    fn try_from(name: String) -> Result<Self, Invalid> {
        check_existing(&name)?;
        Ok(Self(name))
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The name of a queue to be made: `[a-z_][a-z0-9_-]{0,46}`, without `--`.
///
/// pgmq folds table names to lower case but not the names in `pgmq.meta`, so that two names could share one
/// table; names in this form cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewQueueName(QueueName);

impl NewQueueName {
    /// The name as that of an existing queue.
    pub fn as_existing(&self) -> &QueueName {
        &self.0
    }
}

impl TryFrom<String> for NewQueueName {
    type Error = Invalid;

    fn try_from(name: String) -> Result<Self, Invalid> {
        check_length(&name)?;
        let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
        let goes_on_well = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if !starts_well || !goes_on_well {
            return Err(refused(
                "a new queue's name must begin with a-z or _ and go on with a-z, 0-9, _ or - only",
            ));
        }
        QueueName::try_from(name).map(Self)
    }
}

fn check_existing(name: &str) -> Result<(), Invalid> {
    check_length(name)?;
    for forbidden in ["$", ";", "--", "'", "\0"] {
        if name.contains(forbidden) {
            return Err(refused(format!("a queue name must not contain {forbidden:?}")));
        }
    }
    Ok(())
}

fn check_length(name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::new(Kind::MissingField, "a queue name is needed"));
    }
    let characters = name.chars().count();
    if characters > MAX_CHARACTERS {
        return Err(refused(format!(
            "a queue name has at most {MAX_CHARACTERS} characters; this one has {characters}"
        )));
    }
    Ok(())
}

fn refused(description: impl Into<String>) -> Invalid {
    Invalid::new(Kind::InvalidQueueName, description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_takes_small_letters_digits_underscore_and_hyphen() {
        for name in ["a", "_", "orders", "my-queue_2", &"q".repeat(47)] {
            assert!(NewQueueName::try_from(name.to_owned()).is_ok(), "{name}");
        }
        for name in ["", "Orders", "2nd", "-a", "a b", "a;b", "a--b", "ü", "a'b", "a$b", &"q".repeat(48)] {
            assert!(NewQueueName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }

    #[test]
    fn an_existing_name_may_be_odd_but_not_unaddressable() {
        for name in ["Orders", "two words", "über", "a\"b", "日本"] {
            assert!(QueueName::try_from(name.to_owned()).is_ok(), "{name}");
        }
        for name in ["", "a;b", "a--b", "a'b", "a$b", "a\0b", &"ü".repeat(48)] {
            assert!(QueueName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}

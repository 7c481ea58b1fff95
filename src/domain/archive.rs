//! Looks into a queue and its archive, and which archived messages are meant.

use super::bounds::{self, MAX_BATCH};
use super::message::Message;
use super::{Invalid, Kind, Timestamp};

/// What a message of a queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// For a reader.
    Visible,
    /// It was read, and is hidden.
    InFlight,
    /// It was never read, and is hidden.
    Delayed,
}

/// A message as a listing shows it.
#[derive(Debug, Clone)]
pub struct ListedMessage {
    /// The message.
    pub message: Message,
    /// When it was archived, if it was.
    pub archived_at: Option<Timestamp>,
    /// The body, or the headers too, are left out: they cannot be rendered, or no reply can carry them.
    pub texts_omitted: bool,
}

/// Which messages of an archive are meant: those that meet every condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveFilter {
    msg_ids: Vec<i64>,
    archived_after: Option<Timestamp>,
    archived_before: Option<Timestamp>,
}

impl ArchiveFilter {
    /// Takes ids (none means any) and a span of time that begins with `archived_after` and ends before `archived_before`.
    ///
    /// # Errors
    /// The name of the refused field and why: more than 1,000 ids, and a span that ends before it begins.
    pub fn parse(
        msg_ids: Vec<i64>,
        archived_after: Option<Timestamp>,
        archived_before: Option<Timestamp>,
    ) -> Result<Self, Vec<(&'static str, Invalid)>> {
        let mut refused = Vec::new();
        if let Err(invalid) = some_ids(&msg_ids) {
            refused.push(("msg_ids", invalid));
        }
        if let (Some(after), Some(before)) = (archived_after, archived_before)
            && after >= before
        {
            let empty = Invalid::new(Kind::InvalidTimestamp, "must be later than archived_after");
            refused.push(("archived_before", empty));
        }
        match refused.is_empty() {
            true => Ok(Self { msg_ids, archived_after, archived_before }),
            false => Err(refused),
        }
    }

    /// The ids; none if any is meant.
    pub fn msg_ids(&self) -> Option<&[i64]> {
        Some(self.msg_ids.as_slice()).filter(|msg_ids| !msg_ids.is_empty())
    }

    /// Whether the moment of archiving matters.
    pub fn has_times(&self) -> bool {
        self.archived_after.is_some() || self.archived_before.is_some()
    }

    /// When the span of time begins; `-infinity` if it has no beginning.
    pub fn begins(&self) -> Timestamp {
        self.archived_after.unwrap_or(Timestamp::from_unix_micros(i64::MIN))
    }

    /// What the span of time ends before; `infinity` if it has no end.
    pub fn ends(&self) -> Timestamp {
        self.archived_before.unwrap_or(Timestamp::from_unix_micros(i64::MAX))
    }

    /// The filter as a text that no other filter has.
    pub fn words(&self) -> String {
        let micros = |moment: Option<Timestamp>| moment.map(Timestamp::unix_micros);
        format!("{:?} {:?} {:?}", self.msg_ids, micros(self.archived_after), micros(self.archived_before))
    }
}

/// Checks ids that narrow a listing; none is fine.
///
/// # Errors
/// `InvalidCount` for more than 1,000.
pub fn some_ids(msg_ids: &[i64]) -> Result<(), Invalid> {
    match msg_ids.is_empty() {
        true => Ok(()),
        false => bounds::length(msg_ids.len(), MAX_BATCH),
    }
}

/// How many messages a call took out of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenFromArchive {
    /// How many it took.
    pub count: i64,
    /// More that match may be there.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_time_has_to_end_after_its_beginning() {
        let at = |micros| Some(Timestamp::from_unix_micros(micros));
        let refused = |after, before| {
            let parsed = ArchiveFilter::parse(Vec::new(), at(after), at(before));
            parsed.map_err(|refused| refused[0].0)
        };
        assert!(refused(1, 2).is_ok());
        assert_eq!(refused(2, 2), Err("archived_before"));
        assert_eq!(refused(3, 2), Err("archived_before"));
    }

    #[test]
    fn ids_are_a_thousand_at_most() {
        assert_eq!(ArchiveFilter::parse(Vec::new(), None, None), Ok(ArchiveFilter::default()));
        assert!(ArchiveFilter::parse(vec![1; 1_000], None, None).is_ok());
        assert!(ArchiveFilter::parse(vec![1; 1_001], None, None).is_err());
    }

    #[test]
    fn filters_that_differ_have_other_words() {
        let at = |micros| Some(Timestamp::from_unix_micros(micros));
        let filters = [
            ArchiveFilter::default(),
            ArchiveFilter { msg_ids: vec![1, 2], ..Default::default() },
            ArchiveFilter { msg_ids: vec![12], ..Default::default() },
            ArchiveFilter { archived_after: at(1), ..Default::default() },
            ArchiveFilter { archived_before: at(1), ..Default::default() },
        ];
        let words: std::collections::HashSet<String> = filters.iter().map(ArchiveFilter::words).collect();
        assert_eq!(words.len(), filters.len());
    }
}

//! The fields of a request as they are checked: every refused one is remembered with its path.

use crate::domain::{DeduplicationId, Error, Invalid, Kind, Result, Violation};

/// Collects what is wrong with a request.
#[derive(Debug, Default)]
pub(in crate::service) struct Fields {
    path: String,
    violations: Vec<Violation>,
    in_open_transaction: bool,
}

impl Fields {
    /// For a command of an interactive transaction, which takes no deduplication ids.
    pub(in crate::service) fn of_open_transaction() -> Self {
        Self { in_open_transaction: true, ..Self::default() }
    }

    /// Takes the field `deduplication_id`; empty means none.
    pub(super) fn deduplication_id(&mut self, given: String) -> Option<Option<DeduplicationId>> {
        if self.in_open_transaction && !given.is_empty() {
            let why = "an open transaction takes none: others would wait for it until it ends; use Transact";
            self.refuse("deduplication_id", Invalid::new(Kind::InvalidDeduplicationId, why));
            return None;
        }
        self.take("deduplication_id", DeduplicationId::parse(given))
    }

    /// Takes a field's value, or remembers why it was refused.
    pub(in crate::service) fn take<T>(&mut self, field: &str, parsed: Result<T, Invalid>) -> Option<T> {
        parsed.map_err(|invalid| self.refuse(field, invalid)).ok()
    }

    /// Takes a value made of several fields, or remembers which of them were refused.
    pub(super) fn take_all<T>(&mut self, parsed: Result<T, Vec<(&'static str, Invalid)>>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(refused) => {
                for (field, invalid) in refused {
                    self.refuse(field, invalid);
                }
                None
            }
        }
    }

    /// Remembers why a field is refused.
    pub(in crate::service) fn refuse(&mut self, field: &str, invalid: Invalid) {
        self.violations.push(invalid.at(format!("{}{field}", self.path)));
    }

    /// Checks fields below a path such as `messages[17].`.
    pub(in crate::service) fn within<T>(&mut self, segment: &str, check: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.path.len();
        self.path.push_str(segment);
        let checked = check(self);
        self.path.truncate(outer);
        checked
    }

    /// The value, if nothing was refused.
    pub(in crate::service) fn finish<T>(self, value: Option<T>) -> Result<T> {
        match value {
            Some(value) if self.violations.is_empty() => Ok(value),
            _ => Err(Error::invalid(self.violations)),
        }
    }
}

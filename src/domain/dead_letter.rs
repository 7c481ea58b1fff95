//! Messages that leave their queue without being settled: for a dead-letter queue, or another one.

use std::sync::Arc;

use super::{Invalid, Kind, QueueName};

/// The most bytes of the reason that a caller gives.
pub const MAX_REASON_BYTES: usize = 1_024;

/// Why a message goes aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It was handed over as often as its queue's policy allows.
    MaxReceives,
    /// Somebody who held it asked for it, in these words.
    Requested(Arc<str>),
}

impl Cause {
    /// A caller's request, with its reason.
    ///
    /// # Errors
    /// `InvalidHeaders` for more than 1 KiB, and for a NUL character, which Postgres has no place for.
    pub fn requested(reason: String) -> Result<Self, Invalid> {
        if reason.len() > MAX_REASON_BYTES {
            let bytes = reason.len();
            let description = format!("a reason has at most {MAX_REASON_BYTES} bytes; this one has {bytes}");
            return Err(Invalid::new(Kind::InvalidHeaders, description).with("limit", MAX_REASON_BYTES));
        }
        match reason.contains('\0') {
            true => Err(Invalid::new(Kind::InvalidHeaders, "a reason must not contain a NUL character")),
            false => Ok(Self::Requested(reason.into())),
        }
    }

    /// The reason, as a dead letter's header says it.
    pub fn reason(&self) -> &str {
        match self {
            Self::MaxReceives => "max_receives",
            Self::Requested(reason) => reason,
        }
    }
}

/// Messages of one queue that went aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The queue that has them now; none if the archive has.
    pub to: Option<QueueName>,
    /// Their ids in the queue that they left.
    pub msg_ids: Vec<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_a_length_and_no_nul() {
        assert_eq!(
            Cause::requested("bad address".to_owned()).map(|cause| cause.reason().to_owned()),
            Ok("bad address".to_owned())
        );
        assert!(Cause::requested(String::new()).is_ok());
        assert!(Cause::requested("ä".repeat(MAX_REASON_BYTES / 2)).is_ok());
        for reason in ["x".repeat(MAX_REASON_BYTES + 1), "\0".to_owned()] {
            assert_eq!(Cause::requested(reason).map_err(|invalid| invalid.kind), Err(Kind::InvalidHeaders));
        }
    }
}

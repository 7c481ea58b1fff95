//! What is to become of messages that were delivered.

use super::Timestamp;

/// What is to become of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// They are deleted (`pgmq.delete`).
    Delete,
    /// They move to the archive (`pgmq.archive`).
    Archive,
    /// They become visible after so many milliseconds (`pgmq.set_vt`).
    VisibleAfterMillis(i64),
    /// They become visible at a moment (`pgmq.set_vt`).
    VisibleAt(Timestamp),
    /// They stay hidden for at least so many milliseconds from now; a longer time is not shortened.
    HiddenForMillis(i64),
}

impl Settlement {
    /// The time from now after which they are visible, if it is told so.
    pub fn delay_ms(self) -> Option<i64> {
        match self {
            Self::VisibleAfterMillis(delay_ms) | Self::HiddenForMillis(delay_ms) => Some(delay_ms),
            Self::Delete | Self::Archive | Self::VisibleAt(_) => None,
        }
    }

    /// The moment at which they are visible, if it is told so.
    pub fn visible_at(self) -> Option<Timestamp> {
        match self {
            Self::VisibleAt(moment) => Some(moment),
            Self::Delete | Self::Archive | Self::VisibleAfterMillis(_) | Self::HiddenForMillis(_) => None,
        }
    }

    /// Whether the time that they have already may only grow.
    pub fn only_longer(self) -> bool {
        matches!(self, Self::HiddenForMillis(_))
    }
}

//! What is done with messages in hand, over a stream or by unary calls.

use std::time::Duration;

use crate::pb::{self, SettleAction};
use crate::time::span;
use crate::{Client, Error};

/// What is to become of messages.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Settlement {
    /// Ends the delivery. The receipts are filled in later.
    Settle(pb::Settle),
    /// Keeps the messages invisible for longer.
    Extend(Option<prost_types::Duration>),
}

impl Settlement {
    pub(crate) fn action(action: SettleAction) -> Self {
        Self::Settle(pb::Settle { action: action.into(), ..Default::default() })
    }

    pub(crate) fn release(delay: Option<Duration>) -> Self {
        let delay = delay.map(span);
        Self::Settle(pb::Settle { action: SettleAction::Release.into(), delay, ..Default::default() })
    }

    /// What becomes of messages that were received and that the application has not seen: as if they had not come.
    pub(crate) fn give_back() -> Self {
        Self::action(SettleAction::GiveBack)
    }

    /// Whether it ends the delivery, if it succeeds.
    pub(crate) fn ends(&self) -> bool {
        matches!(self, Self::Settle(_))
    }

    /// The command of a Consume stream.
    pub(crate) fn command(&self, receipts: Vec<String>) -> pb::consume_request::Command {
        match self.clone() {
            Self::Settle(settle) => pb::consume_request::Command::Settle(pb::Settle { receipts, ..settle }),
            Self::Extend(visibility_timeout) => {
                pb::consume_request::Command::Extend(pb::Extend { receipts, visibility_timeout })
            }
        }
    }

    /// Makes the unary call.
    pub(crate) async fn unary(
        &self,
        client: &Client,
        queue: &str,
        receipts: Vec<String>,
    ) -> Result<Vec<pb::ItemResult>, Error> {
        let queue = queue.to_owned();
        let settle = match self.clone() {
            Self::Settle(settle) => settle,
            Self::Extend(span) => {
                let visibility = span.map(pb::set_visibility_timeout_request::Visibility::VisibilityTimeout);
                let request =
                    pb::SetVisibilityTimeoutRequest { queue, receipts, visibility, ..Default::default() };
                return Ok(client.unary(&request, None).await?.results);
            }
        };
        let results = match settle.action() {
            SettleAction::Archive => {
                let request = pb::ArchiveRequest { queue, receipts, ..Default::default() };
                client.unary(&request, None).await?.results
            }
            SettleAction::Release => {
                let request = pb::ReleaseRequest { queue, receipts, delay: settle.delay };
                client.unary(&request, None).await?.results
            }
            SettleAction::DeadLetter => {
                let request = pb::DeadLetterRequest { queue, receipts, reason: settle.reason };
                client.unary(&request, None).await?.results
            }
            SettleAction::Delete => {
                let request = pb::DeleteRequest { queue, receipts, ..Default::default() };
                client.unary(&request, None).await?.results
            }
            // No call gives back uncounted; the next best is that it comes back at once.
            SettleAction::GiveBack | SettleAction::Unspecified => {
                let request = pb::ReleaseRequest { queue, receipts, delay: Some(span(Duration::ZERO)) };
                client.unary(&request, None).await?.results
            }
        };
        Ok(results)
    }
}

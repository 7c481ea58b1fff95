//! What requests are checked by, and what they get where they leave something open.

use std::sync::Arc;

use crate::domain::{Limits, Policy, QueueName, Schedule};
use crate::pg::Policies;

/// The operator's limits, and the policies of the queues.
#[derive(Clone)]
pub struct Rules {
    /// The operator's limits.
    pub limits: Limits,
    policies: Policies,
}

/// What holds for the messages of one call.
#[derive(Debug, Clone, Copy)]
pub struct SendTerms {
    /// The most bytes of a body, as Postgres renders it.
    pub max_message_bytes: usize,
    /// When a message becomes visible that does not say it.
    pub schedule: Schedule,
}

impl Rules {
    /// Puts the two together.
    pub fn new(limits: Limits, policies: &Policies) -> Self {
        Self { limits, policies: policies.clone() }
    }

    /// The policy of a queue now; see [`Policies::policy_of`].
    pub fn policy_of(&self, queue: &QueueName) -> Arc<Policy> {
        self.policies.policy_of(queue)
    }

    /// The same for a queue whose name may have been refused: then it does not matter.
    pub fn policy_of_named(&self, queue: Option<&QueueName>) -> Arc<Policy> {
        queue.map_or_else(Arc::default, |queue| self.policy_of(queue))
    }

    /// What holds for messages that are sent to a queue.
    pub fn of_queue(&self, queue: Option<&QueueName>) -> SendTerms {
        let policy = self.policy_of_named(queue);
        let own_limit = policy.max_message_bytes.and_then(|limit| usize::try_from(limit).ok());
        let max_message_bytes = own_limit.unwrap_or(self.limits.max_message_bytes);
        SendTerms { max_message_bytes, schedule: policy.schedule() }
    }

    /// What holds for messages that a topic leads to queues, each of which has its own policy.
    pub fn of_topic(&self) -> SendTerms {
        SendTerms { max_message_bytes: self.limits.max_message_bytes, schedule: Schedule::ByPolicy }
    }
}

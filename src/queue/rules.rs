//! What requests are checked by, and what they get where they leave something open.

use std::sync::Arc;

use crate::domain::{Limits, Policy, QueueName};
use crate::pg::Policies;

/// The operator's limits, and the policies of the queues.
#[derive(Clone)]
pub struct Rules {
    /// The operator's limits.
    pub limits: Limits,
    policies: Policies,
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
}

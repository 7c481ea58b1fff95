//! Under what a request is found in answers and logs.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use crate::domain::client::parse_name;

/// The metadata key of request ids, from the caller and back to it.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Metadata in which a caller may name itself.
pub(super) const CLIENT_METADATA: &str = "pgmq-client";

/// The longest id that is taken over from a caller.
const MAX_BYTES: usize = 128;

/// A request's id: the caller's own if it sent a good one, else a new UUID (version 7). With it goes what the caller
/// calls itself, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    id: String,
    client: Option<Arc<str>>,
}

impl RequestId {
    /// Takes over the caller's id or makes one.
    pub fn of(headers: &HeaderMap<HeaderValue>) -> Self {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let good = given.filter(|id| {
            !id.is_empty() && id.len() <= MAX_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let client = headers.get(CLIENT_METADATA).and_then(|name| parse_name(name.as_bytes()).ok());
        Self {
            id: good.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned),
            client: client.filter(|name| !name.is_empty()).map(Arc::from),
        }
    }

    /// What the caller calls itself, if it does and may.
    pub(super) fn client(&self) -> Option<&Arc<str>> {
        self.client.as_ref()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.id)
    }
}

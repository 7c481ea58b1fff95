//! Under what a request is found in answers and logs.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
///
/// Most are never written anywhere, so a new one becomes text only where it is, and its random part needs no call of the
/// system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId {
    id: Id,
    client: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Id {
    Given(Arc<str>),
    Made(Uuid),
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
            id: good.map_or_else(|| Id::Made(new()), |id| Id::Given(Arc::from(id))),
            client: client.filter(|name| !name.is_empty()).map(Arc::from),
        }
    }

    /// What the caller calls itself, if it does and may.
    pub(super) fn client(&self) -> Option<&Arc<str>> {
        self.client.as_ref()
    }
}

fn new() -> Uuid {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Id::Given(id) => formatter.write_str(id),
            Id::Made(id) => fmt::Display::fmt(id, formatter),
        }
    }
}

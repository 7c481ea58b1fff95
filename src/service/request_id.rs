//! The id under which a request is found in answers and logs.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The metadata key of request ids, from the caller and back to it.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over from a caller.
const MAX_BYTES: usize = 128;

/// A request's id: the caller's own if it sent a good one, else a new UUID (version 7).
///
/// Most are never written anywhere, so a new one becomes text only where it is, and its random part needs no call of the
/// system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Id);

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
        Self(good.map_or_else(|| Id::Made(new()), |id| Id::Given(Arc::from(id))))
    }
}

fn new() -> Uuid {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    uuid::Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Id::Given(id) => formatter.write_str(id),
            Id::Made(id) => fmt::Display::fmt(id, formatter),
        }
    }
}

//! The id under which a request is found in answers and logs.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The metadata key of request ids, from the caller and back to it.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over from a caller.
const MAX_BYTES: usize = 128;

/// A request's id: the caller's own if it sent a good one, else a new UUID (version 7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// Takes over the caller's id or makes one.
    pub fn of(headers: &HeaderMap<HeaderValue>) -> Self {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let good = given.filter(|id| {
            !id.is_empty() && id.len() <= MAX_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic())
        });
        Self(good.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

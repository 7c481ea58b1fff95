//! What a refused call says, in a form that tests compare.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The parts of a status that callers rely on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) reason: String,
    /// The refused fields, in order.
    pub(crate) fields: Vec<String>,
    pub(crate) metadata: HashMap<String, String>,
    pub(crate) retry_delay: Option<Duration>,
    pub(crate) message: String,
}

impl Refusal {
    /// Takes a status apart, and checks what every status of ours has: the domain, a request id, the same reason in
    /// the trailer, and a text that shows nothing of the inside.
    pub(crate) fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
        assert_eq!(info.domain, "pgmq.v1");
        let request_id = &details.request_info().expect("a RequestInfo").request_id;
        let trailer = |key: &str| status.metadata().get(key).and_then(|value| value.to_str().ok());
        assert_eq!(trailer("x-request-id"), Some(request_id.as_str()));
        assert_eq!(trailer("pgmq-reason"), Some(info.reason.as_str()));
        assert_eq!(trailer("grpc-retry-pushback-ms").is_some(), info.reason == "OVERLOADED");
        for inside in [
            "SELECT",
            "INSERT",
            "UPDATE ",
            "DELETE FROM",
            "postgres://",
            "postgresql://",
            ".rs",
            ".q_",
            "\"q_",
            "/tmp",
        ] {
            assert!(!status.message().contains(inside), "{inside:?} shows in {:?}", status.message());
        }
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        Self {
            code: status.code(),
            reason: info.reason.clone(),
            fields: violations.iter().map(|violation| violation.field.clone()).collect(),
            metadata: info.metadata.clone(),
            retry_delay: details.retry_info().and_then(|retry| retry.retry_delay),
            message: status.message().to_owned(),
        }
    }

    /// Checks code and reason.
    #[track_caller]
    pub(crate) fn expect(status: &Status, code: Code, reason: &str) -> Self {
        let refusal = Self::of(status);
        assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{refusal:?}");
        refusal
    }

    /// Checks that an argument was refused for a reason in exactly one field.
    #[track_caller]
    pub(crate) fn expect_invalid(status: &Status, reason: &str, field: &str) -> Self {
        let refusal = Self::expect(status, Code::InvalidArgument, reason);
        assert_eq!(refusal.fields, [field], "{refusal:?}");
        refusal
    }
}

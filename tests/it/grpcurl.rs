//! A person with nothing but grpcurl: everything is found, called and understood by reflection.

use crate::harness::Test;
use crate::harness::grpcurl::Grpcurl;

const SERVICES: [&str; 3] = ["pgmq.v1.AdminService", "pgmq.v1.QueueService", "pgmq.v1.TopicService"];

#[tokio::test]
async fn services_methods_and_messages_are_listed_and_described() {
    let test = Test::start().await;
    let Some(grpcurl) = Grpcurl::find(&test.server) else { return };

    let services = grpcurl.print(&["list"]).await;
    for service in SERVICES {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let methods = grpcurl.print(&["list", "pgmq.v1.QueueService"]).await;
    assert!(methods.lines().any(|line| line == "pgmq.v1.QueueService.Read"), "{methods}");
    let service = grpcurl.print(&["describe", "pgmq.v1.QueueService"]).await;
    assert!(service.contains("returns ( stream .pgmq.v1.ReadResponse )"), "{service}");
    let message = grpcurl.print(&["describe", "pgmq.v1.SendRequest"]).await;
    assert!(message.contains("string queue = 1;"), "{message}");
    let reasons = grpcurl.print(&["describe", "pgmq.v1.ErrorReason"]).await;
    assert!(reasons.contains("ERROR_REASON_QUEUE_NOT_FOUND = 23;"), "{reasons}");
}

#[tokio::test]
async fn a_message_goes_in_through_a_stream_and_out() {
    let test = Test::start().await;
    let Some(grpcurl) = Grpcurl::find(&test.server) else { return };

    let created = grpcurl.call("QueueService/CreateQueue", r#"{"queue": "orders"}"#).await;
    assert_eq!(created["created"], true);
    assert_eq!(created["queue"]["kind"], "QUEUE_KIND_STANDARD");

    let body = r#"{"queue": "orders", "message": "{\"total\": 42}", "headers": "{\"trace\": \"x\"}"}"#;
    let sent = grpcurl.call("QueueService/Send", body).await;
    assert_eq!(sent["msgId"], "1");

    let read = r#"{"queue": "orders", "max_messages": 1, "visibility_timeout": "60s"}"#;
    let answers = grpcurl.stream("QueueService/Read", read).await;
    assert_eq!(answers[0]["started"]["visibilityTimeout"], "60s");
    let message = &answers[1]["messages"][0];
    assert_eq!((&message["msgId"], &message["readCt"]), (&"1".into(), &1.into()));
    assert_eq!(message["message"], r#"{"total": 42}"#);
    assert_eq!(message["headers"], r#"{"trace": "x"}"#);
    assert_eq!(answers.len(), 2);

    let settle = format!(r#"{{"queue": "orders", "receipts": [{}]}}"#, message["receipt"]);
    let deleted = grpcurl.call("QueueService/Delete", &settle).await;
    assert_eq!(deleted["results"][0]["outcome"], "OUTCOME_DONE");
    let again = grpcurl.call("QueueService/Delete", &settle).await;
    assert_eq!(again["results"][0]["outcome"], "OUTCOME_NOT_FOUND");
}

#[tokio::test]
async fn an_error_is_readable_with_its_details() {
    let test = Test::start().await;
    let Some(grpcurl) = Grpcurl::find(&test.server) else { return };

    let missing = grpcurl.run(Some(r#"{"queue": "nowhere"}"#), &["pgmq.v1.QueueService/GetQueue"]).await;
    assert!(!missing.status.success());
    let text = String::from_utf8_lossy(&missing.stderr);
    for part in [
        "Code: NotFound",
        "queue \"nowhere\" does not exist",
        "type.googleapis.com/google.rpc.ErrorInfo",
        "\"reason\": \"QUEUE_NOT_FOUND\"",
        "\"domain\": \"pgmq.v1\"",
        "\"requestId\": \"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }

    let invalid = r#"{"queue": "orders", "message": "{oops}"}"#;
    let invalid = grpcurl.run(Some(invalid), &["pgmq.v1.QueueService/Send"]).await;
    let text = String::from_utf8_lossy(&invalid.stderr);
    for part in ["Code: InvalidArgument", "\"reason\": \"INVALID_JSON\"", "\"field\": \"message\""] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

//! Rules of others on the queue's table: constraints and triggers.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use tonic::{Code, Status};

use super::{good_delete, good_send};
use crate::harness::{Refusal, Test, eventually};

/// Checks that the database has refused a call, and gives its SQLSTATE and the name of the constraint.
#[track_caller]
fn expect_refused(status: &Status) -> (Option<String>, Option<String>) {
    let refusal = Refusal::expect(status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert_eq!(refusal.retry_delay, None, "{refusal:?}");
    let known = |key: &str| refusal.metadata.get(key).cloned();
    (known("sqlstate"), known("constraint"))
}

#[tokio::test]
async fn what_a_rule_refuses_is_told_by_its_name_and_not_by_its_text() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "ALTER TABLE pgmq.q_orders ADD CONSTRAINT wants_an_object CHECK (jsonb_typeof(message) = 'object');
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'orders are closed for %', OLD.message; END $$;
         CREATE TRIGGER refuse BEFORE DELETE ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    test.client.send("orders", r#"{"of": "confidential"}"#).await;
    let send = SendRequest { message: r#"["confidential"]"#.to_owned(), ..good_send() };
    let status = test.client.queue.send(send).await.unwrap_err();
    let named = (Some("23514".to_owned()), Some("wants_an_object".to_owned()));
    assert_eq!(expect_refused(&status), named);
    // The first of a second is in the log.
    let id = status.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let logged = async || test.server.log_lines().into_iter().find(|line| line.contains(&id));
    let line = eventually("the cause in the log", logged).await;
    assert!(line.contains("wants_an_object") && line.contains("WARN"), "{line}");

    let status = test.client.queue.delete(good_delete()).await.unwrap_err();
    assert_eq!(expect_refused(&status), (Some("P0001".to_owned()), None));
    assert!(!test.server.log().contains("confidential"), "{}", test.server.log());
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1);
}

#[tokio::test]
async fn a_rule_that_is_broken_itself_refuses_what_it_is_asked_about() {
    let bodies = [
        ("RAISE EXCEPTION 'no'", "P0001"),
        ("NEW.enqueued_at := NULL; RETURN NEW", "23502"),
        ("RETURN CASE WHEN 1 / (NEW.msg_id - NEW.msg_id) = 1 THEN NEW END", "22012"),
        ("NEW.message := 'oops'; RETURN NEW", "22P02"),
        ("INSERT INTO nowhere VALUES (1); RETURN NEW", "42P01"),
        ("PERFORM no_such_function(NEW.msg_id); RETURN NEW", "42883"),
        ("INSERT INTO no_such_schema.audit VALUES (1); RETURN NEW", "42P01"),
        ("NEW.no_such_column := 1; RETURN NEW", "42703"),
        ("ASSERT false; RETURN NEW", "P0004"),
    ];
    for (body, state) in bodies {
        let mut test = Test::with_queue("orders").await;
        test.run(&format!(
            "CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$;
             CREATE TRIGGER rule BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION rule()"
        ))
        .await;
        let status = test.client.queue.send(good_send()).await.unwrap_err();
        assert_eq!(expect_refused(&status), (Some(state.to_owned()), None), "{body}");
        assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
    }
}

#[tokio::test]
async fn a_constraint_that_is_looked_at_last_refuses_the_send_and_the_transaction() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE check_violation; END $$;
         CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON pgmq.q_orders DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let send = Operation::Send(good_send());
    for status in [
        test.client.queue.send(good_send()).await.unwrap_err(),
        test.client.queue.transact(super::transact([send])).await.unwrap_err(),
    ] {
        assert_eq!(expect_refused(&status).0.as_deref(), Some("23514"));
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_swallowed_message_is_not_acknowledged() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    .await;
    let status = test.client.queue.send(good_send()).await.unwrap_err();
    assert_eq!(expect_refused(&status), (None, None));
}

#[tokio::test]
async fn an_index_that_cannot_hold_a_message_refuses_it() {
    let mut test = Test::with_queue("orders").await;
    test.run("CREATE INDEX ON pgmq.q_orders ((message::text))").await;
    // Nothing that compresses well.
    let text: String = (0..2_000).map(|number: u64| (number * 7_919 + number.pow(3)).to_string()).collect();
    let send = SendRequest { message: format!("{text:?}"), ..good_send() };
    let status = test.client.queue.send(send).await.unwrap_err();
    assert_eq!(expect_refused(&status).0.as_deref(), Some("54000"));
}

#[tokio::test]
async fn other_failures_of_the_database_are_told_by_their_class() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        "CREATE TABLE public.fail_with (state text);
         CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
         $$ DECLARE wanted text; BEGIN SELECT f.state INTO wanted FROM public.fail_with AS f;
            RAISE EXCEPTION 'failed as told' USING ERRCODE = wanted; END $$;
         CREATE TRIGGER fail BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    .await;
    for (state, code, reason) in [
        ("53100", Code::ResourceExhausted, "STORAGE_FULL"),
        ("53200", Code::ResourceExhausted, "DATABASE_RESOURCES"),
        ("53300", Code::ResourceExhausted, "DATABASE_RESOURCES"),
        ("54000", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("22P02", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("42P01", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("42883", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("08006", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("38000", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("XX000", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("P0001", Code::FailedPrecondition, "REFUSED_BY_DATABASE"),
        ("40001", Code::Aborted, "CONFLICT"),
        ("55P03", Code::Aborted, "QUEUE_BUSY"),
        ("25006", Code::Unavailable, "DATABASE_UNAVAILABLE"),
        ("42501", Code::PermissionDenied, "PERMISSION_DENIED"),
        ("57P01", Code::Unknown, "OUTCOME_UNKNOWN"),
    ] {
        test.run(&format!("DELETE FROM public.fail_with; INSERT INTO public.fail_with VALUES ('{state}')"))
            .await;
        let status = test.client.queue.send(good_send()).await.unwrap_err();
        let refusal = Refusal::expect(&status, code, reason);
        assert!(!refusal.message.contains("failed as told"), "{refusal:?}");
        let sqlstate = (reason == "REFUSED_BY_DATABASE").then_some(state);
        assert_eq!(refusal.metadata.get("sqlstate").map(String::as_str), sqlstate, "{refusal:?}");
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

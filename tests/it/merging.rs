//! Many callers in one statement: each has its own verdict, and none hurts another.

mod groups;
mod kinds;
mod locks;
mod overload;
mod slow;
mod storm;
mod truth;

use std::collections::HashSet;

use pgmq_grpc::proto::v1::{
    DeleteRequest, ItemResult, Outcome, SendRequest, SendResponse, SetVisibilityTimeoutRequest,
};
use tonic::{Code, Status};

use crate::harness::{Client, Gate, Refusal, Test, seconds};

/// A queue before which inserts wait at a gate, with one send at the gate and as many behind it as the bounds allow.
struct Jam {
    test: Test,
    gate: Gate,
    first: tokio::task::JoinHandle<Result<i64, Status>>,
    /// Bodies and their callers.
    others: Vec<(String, tokio::task::JoinHandle<Result<i64, Status>>)>,
}

/// How many messages wait in a lane at most.
const LANE: usize = 10;

async fn send(mut client: Client, message: String) -> Result<i64, Status> {
    let request = SendRequest { queue: "orders".to_owned(), message, ..Default::default() };
    client.queue.send(request).await.map(|answer: tonic::Response<SendResponse>| answer.into_inner().msg_id)
}

impl Jam {
    /// Sends these messages, after some plain SQL, while the first one is held at the gate; they are more than a lane takes.
    async fn make(bodies: Vec<String>, setup: &str) -> Self {
        assert!(bodies.len() > LANE);
        let mut test = Test::start_with(&["--max-waiting-messages", "20"]).await;
        test.client.create("orders").await;
        test.run(setup).await;
        let gate = Gate::close(&test, "orders", "INSERT").await;
        let first = tokio::spawn(send(test.client.clone(), "\"first\"".to_owned()));
        gate.arrival(&test, "send").await;
        let others =
            bodies.into_iter().map(|body| (body.clone(), tokio::spawn(send(test.client.clone(), body))));
        let others = others.collect();
        Self { test, gate, first, others }
    }

    /// Waits for as many refusals as there are messages too many: then the others wait. Gives those refused.
    async fn until_full(&mut self) -> Vec<(String, Result<i64, Status>)> {
        let too_many = self.others.len() - LANE;
        let (mut verdicts, mut waiting) = (Vec::new(), Vec::new());
        let refused = crate::harness::eventually("the refusals", async || {
            let refused = self.others.iter().filter(|(_, caller)| caller.is_finished()).count();
            (refused == too_many).then_some(refused)
        });
        assert_eq!(refused.await, too_many);
        for (body, caller) in self.others.drain(..) {
            match caller.is_finished() {
                true => verdicts.push((body, caller.await.expect("a caller"))),
                false => waiting.push((body, caller)),
            }
        }
        for (_, verdict) in &verdicts {
            let status = verdict.as_ref().expect_err("a refusal");
            let refusal = Refusal::expect(status, Code::Unavailable, "OVERLOADED");
            assert!(refusal.retry_delay.is_some());
        }
        self.others = waiting;
        verdicts
    }

    /// Lets those who wait go once the lane is full. Gives each one's verdict.
    async fn solve(mut self) -> (Test, Vec<(String, Result<i64, Status>)>) {
        let mut verdicts = self.until_full().await;
        self.gate.open(&self.test).await;
        self.first.await.expect("the first caller").expect("a send");
        for (body, caller) in self.others {
            verdicts.push((body, caller.await.expect("a caller")));
        }
        (self.test, verdicts)
    }
}

#[tokio::test]
async fn what_gathers_goes_in_one_statement_and_what_does_not_fit_is_refused_at_once() {
    let bodies: Vec<String> = (0..30).map(|number| number.to_string()).collect();
    let (test, verdicts) = Jam::make(bodies, "").await.solve().await;
    let stored: Vec<(&String, i64)> =
        verdicts.iter().filter_map(|(body, verdict)| Some((body, *verdict.as_ref().ok()?))).collect();
    assert_eq!(stored.len(), LANE);
    for (body, msg_id) in stored {
        let sql = format!("SELECT message::text FROM pgmq.q_orders WHERE msg_id = {msg_id}");
        assert_eq!(test.value::<String>(&sql).await, *body);
    }
    // The refused ones left nothing, and all that waited went in one transaction.
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1 + LANE as i64);
    assert_eq!(test.value::<i64>("SELECT count(DISTINCT xmin::text) FROM pgmq.q_orders").await, 2);
}

#[tokio::test]
async fn a_message_that_the_table_refuses_fails_alone() {
    let bodies: Vec<String> = (0..14).map(|number| number.to_string()).collect();
    // Of the messages behind the gate, the even ones are bad.
    let check = "ALTER TABLE pgmq.q_orders ADD CHECK (message = '\"first\"' OR message::text ~ '[13579]$')";
    let jam = Jam::make(bodies, check).await;
    let (test, verdicts) = jam.solve().await;
    for (body, verdict) in &verdicts {
        let number: i64 = body.parse().expect("a number");
        match verdict {
            Ok(_) => assert_eq!(number % 2, 1, "a bad message was stored"),
            Err(status) if Refusal::of(status).reason == "OVERLOADED" => {}
            Err(status) => {
                assert_eq!(number % 2, 0, "a good message failed: {status:?}");
                Refusal::expect(status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
            }
        }
    }
    let sent = verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).count();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 1 + sent as i64);
}

#[tokio::test]
async fn a_trigger_that_swallows_messages_takes_only_its_own() {
    let test = Test::with_queue("orders").await;
    test.run(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.message::text::int % 5 = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_orders FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    .await;
    let callers = (0..40).map(|number: i64| tokio::spawn(send(test.client.clone(), number.to_string())));
    for (number, caller) in callers.collect::<Vec<_>>().into_iter().enumerate() {
        match caller.await.expect("a caller") {
            Ok(_) => assert_ne!(number % 5, 0),
            Err(status) => {
                assert_eq!(number % 5, 0, "{status:?}");
                Refusal::expect(&status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
            }
        }
    }
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 32);
}

#[tokio::test]
async fn what_sessions_have_prepared_outlives_changes_of_the_table() {
    let mut test = Test::with_queue("orders").await;
    let changes = [
        "ALTER TABLE pgmq.q_orders ADD COLUMN note text DEFAULT 'none'",
        "ALTER TABLE pgmq.q_orders DROP COLUMN note",
        "SELECT pgmq.drop_queue('orders'); SELECT pgmq.create('orders')",
    ];
    for change in changes {
        test.run(change).await;
        // Often enough that sends and reads are prepared when the next change comes.
        for number in 0..12 {
            let msg_id = test.client.send("orders", &number.to_string()).await;
            let read = test.client.read_one("orders").await;
            assert_eq!((read.msg_id, read.message), (msg_id, number.to_string()), "after {change}");
            assert_eq!(test.client.delete("orders", &[&read.receipt]).await, [Outcome::Done]);
        }
    }
}

#[tokio::test]
async fn a_message_is_settled_once_however_many_ask() {
    let mut test = Test::with_queue("orders").await;
    for by_receipt in [true, false] {
        let msg_id = test.client.send("orders", "{}").await;
        let read = test.client.read_one("orders").await;
        let request = DeleteRequest {
            queue: "orders".to_owned(),
            receipts: if by_receipt { vec![read.receipt] } else { vec![] },
            msg_ids: if by_receipt { vec![] } else { vec![msg_id] },
        };
        let callers = (0..20).map(|_| {
            let (mut client, request) = (test.client.clone(), request.clone());
            tokio::spawn(
                async move { client.queue.delete(request).await.expect("a delete").into_inner().results },
            )
        });
        let mut done = 0;
        for caller in callers.collect::<Vec<_>>() {
            match caller.await.expect("a caller").first().map(ItemResult::outcome) {
                Some(Outcome::Done) => done += 1,
                other => assert_eq!(other, Some(Outcome::NotFound)),
            }
        }
        assert_eq!(done, 1);
    }
}

#[tokio::test]
async fn each_of_many_changes_of_visibility_has_its_own_time() {
    let mut test = Test::with_queue("orders").await;
    let sent = test.client.send_all("orders", &["{}"; 20]).await;
    let callers = sent.iter().map(|&msg_id| {
        let mut client = test.client.clone();
        let request = SetVisibilityTimeoutRequest {
            queue: "orders".to_owned(),
            msg_ids: vec![msg_id],
            visibility: seconds(1_000.0 * msg_id as f64)
                .map(pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility::VisibilityTimeout),
            ..Default::default()
        };
        tokio::spawn(async move { client.queue.set_visibility_timeout(request).await })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("a caller").expect("a change");
    }
    let right =
        "SELECT bool_and(abs(extract(epoch FROM vt - now()) - 1000 * msg_id) < 500) FROM pgmq.q_orders";
    assert!(test.value::<bool>(right).await);
}

#[tokio::test]
async fn a_locked_message_holds_up_its_own_caller_only() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["{}"; 21]).await;
    let read = test.client.read("orders", 21).await;
    test.run("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await;
    let deleting = test.client.clone();
    let delete = |receipt: String| {
        let mut client = deleting.clone();
        let request = DeleteRequest { queue: "orders".to_owned(), receipts: vec![receipt], msg_ids: vec![] };
        tokio::spawn(async move { client.queue.delete(request).await })
    };
    let mut callers = read.iter().map(|message| delete(message.receipt.clone())).collect::<Vec<_>>();
    // And one whose message is gone: it is told so without a wait for anybody's lock.
    test.client.send("orders", "{}").await;
    let gone = test.client.read_one("orders").await;
    test.client.delete("orders", &[&gone.receipt]).await;
    callers.push(delete(gone.receipt));
    let locked = callers.remove(0);
    let mut outcomes = Vec::new();
    for caller in callers {
        let results = caller.await.expect("a caller").expect("a delete").into_inner().results;
        outcomes.extend(results.iter().map(ItemResult::outcome));
    }
    assert_eq!(outcomes.pop(), Some(Outcome::NotFound));
    assert_eq!(outcomes.into_iter().collect::<HashSet<_>>(), HashSet::from([Outcome::Done]));
    let busy = locked.await.expect("a caller").expect_err("a lock");
    Refusal::expect(&busy, Code::Aborted, "QUEUE_BUSY");
    test.run("COMMIT").await;
    assert_eq!(test.client.delete("orders", &[&read[0].receipt]).await, [Outcome::Done]);
}

//! Sends of many queues in one transaction: each queue gets what was sent to it, and whatever is wrong with one hurts no other.

use std::collections::{BTreeMap, HashSet};

use pgmq_grpc::proto::v1::{SendRequest, SendResponse};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::harness::{Client, Gate, OwnPostgres, Refusal, Server, Test, eventually, skip};
use crate::server_state::eventually_shows;

type Sending = JoinHandle<Result<i64, Status>>;

const QUEUES: usize = 40;

fn name(number: usize) -> String {
    format!("many_{number}")
}

/// Many queues on a server of one connection, which one send holds at a gate; and one send to each of them that waits for it.
struct Many {
    test: Test,
    gate: Gate,
    first: Sending,
    /// The process that waits at the gate.
    gated: i32,
    sends: Vec<Sending>,
}

fn send(test: &Test, queue: String, message: &str) -> Sending {
    send_by(&test.client, queue, message)
}

fn send_by(client: &Client, queue: String, message: &str) -> Sending {
    let (mut client, message) = (client.clone(), message.to_owned());
    tokio::spawn(async move {
        let request = SendRequest { queue, message, ..Default::default() };
        client
            .queue
            .send(request)
            .await
            .map(|answer: tonic::Response<SendResponse>| answer.into_inner().msg_id)
    })
}

impl Many {
    /// Whatever is to be wrong with the queues is done after the server has got to know them.
    async fn gather(options: &[&str], wrong: &str) -> Self {
        let mut test = Test::start_with(&[&["--pool-size", "1"], options].concat()).await;
        test.client.create("gated").await;
        test.run(&format!(
            "SELECT pgmq.create('many_' || number) FROM generate_series(0, {}) AS number",
            QUEUES - 1
        ))
        .await;
        for number in 0..QUEUES {
            test.client.send(&name(number), "\"before\"").await;
        }
        test.run(wrong).await;
        let gate = Gate::close(&test, "gated", "INSERT").await;
        let first = send(&test, "gated".to_owned(), "{}");
        let gated = gate.arrival(&test, "send").await;
        let sends =
            (0..QUEUES).map(|number| send(&test, name(number), &format!("\"to {number}\""))).collect();
        let lanes = i32::try_from(QUEUES).unwrap() + 1;
        eventually_shows(&test.client, "all of them wait", |state| state.lanes == lanes).await;
        Self { test, gate, first, gated, sends }
    }

    /// Lets them go, and gives each one's verdict.
    async fn solve(mut self) -> (Test, Vec<Result<i64, Status>>) {
        self.gate.open(&self.test).await;
        (&mut self.first).await.unwrap().expect("the first send");
        self.verdicts().await
    }

    /// The same over a new connection: the first is cut.
    async fn solve_anew(mut self) -> (Test, Vec<Result<i64, Status>>) {
        self.gate.terminate(&self.test, self.gated).await;
        let lost = (&mut self.first).await.unwrap().expect_err("a connection that was cut");
        Refusal::expect(&lost, Code::Unknown, "OUTCOME_UNKNOWN");
        self.verdicts().await
    }

    async fn verdicts(self) -> (Test, Vec<Result<i64, Status>>) {
        let mut verdicts = Vec::new();
        for sending in self.sends {
            verdicts.push(sending.await.unwrap());
        }
        (self.test, verdicts)
    }
}

/// The rows that a queue got at the end: their ids, their texts, and the transactions that wrote them.
async fn rows(test: &Test, number: usize) -> Vec<(i64, String, String)> {
    let sql = format!(
        "SELECT msg_id, message #>> '{{}}', xmin::text FROM pgmq.q_many_{number} WHERE message NOT IN ('\"before\"', '\"again\"') ORDER BY 1"
    );
    let rows = test.sql.query(&sql, &[]).await.expect("the rows");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Checks that every queue but some got its own message, once, with the id that its sender was told. Gives the transactions.
async fn expect_stored(
    test: &Test,
    verdicts: &[Result<i64, Status>],
    but: &[usize],
) -> BTreeMap<usize, String> {
    let mut transactions = BTreeMap::new();
    for (number, verdict) in verdicts.iter().enumerate().filter(|(number, _)| !but.contains(number)) {
        let msg_id = *verdict.as_ref().expect("a send");
        let stored = rows(test, number).await;
        assert_eq!(stored.len(), 1, "{stored:?}");
        assert_eq!((stored[0].0, stored[0].1.clone()), (msg_id, format!("to {number}")));
        transactions.insert(number, stored[0].2.clone());
    }
    transactions
}

fn different(transactions: &BTreeMap<usize, String>) -> usize {
    transactions.values().collect::<HashSet<_>>().len()
}

#[tokio::test]
async fn what_many_send_to_many_queues_is_committed_together() {
    let (test, verdicts) = Many::gather(&[], "SELECT 1").await.solve().await;
    let transactions = expect_stored(&test, &verdicts, &[]).await;
    // The first to wait may have begun to lead before the others came.
    assert!(different(&transactions) <= 2, "{transactions:?}");
}

/// Has a trigger refuse what comes to one queue, and checks that it is the only one that hears so.
async fn expect_one_refused(trigger: &str) {
    let refuse =
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE check_violation; END $$";
    let many =
        Many::gather(&[], &format!("{refuse}; {trigger} FOR EACH ROW EXECUTE FUNCTION refuse()")).await;
    let (test, verdicts) = many.solve().await;
    expect_stored(&test, &verdicts, &[7]).await;
    let refused = verdicts[7].as_ref().expect_err("nothing was stored");
    Refusal::expect(refused, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
    assert!(rows(&test, 7).await.is_empty());
}

#[tokio::test]
async fn a_message_that_a_trigger_refuses_hurts_no_other_queue() {
    expect_one_refused("CREATE TRIGGER refuse BEFORE INSERT ON pgmq.q_many_7").await;
}

#[tokio::test]
async fn a_message_that_is_to_be_refused_at_the_commit_hurts_no_other_queue() {
    let deferred = "AFTER INSERT ON pgmq.q_many_7 DEFERRABLE INITIALLY DEFERRED";
    expect_one_refused(&format!("CREATE CONSTRAINT TRIGGER refuse {deferred}")).await;
}

#[tokio::test]
async fn messages_that_a_trigger_swallows_are_told_of_and_no_others() {
    let many = Many::gather(
        &[],
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON pgmq.q_many_7 FOR EACH ROW EXECUTE FUNCTION swallow()",
    );
    let (test, verdicts) = many.await.solve().await;
    expect_stored(&test, &verdicts, &[7]).await;
    let status = verdicts[7].as_ref().expect_err("nothing was stored");
    Refusal::expect(status, Code::FailedPrecondition, "REFUSED_BY_DATABASE");
}

#[tokio::test]
async fn a_queue_that_was_dropped_by_plain_sql_is_missing_and_no_other_is() {
    let (test, verdicts) = Many::gather(&[], "SELECT pgmq.drop_queue('many_7')").await.solve().await;
    expect_stored(&test, &verdicts, &[7]).await;
    let status = verdicts[7].as_ref().expect_err("no queue");
    Refusal::expect(status, Code::NotFound, "QUEUE_NOT_FOUND");
}

#[tokio::test]
async fn locked_queues_hold_up_no_other_and_are_told_the_truth() {
    // Two: the server has to find both.
    const LOCKED: [usize; 2] = [7, 23];
    let mut many = Many::gather(&[], "SELECT 1").await;
    let other = many.test.database.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE pgmq.q_many_7, pgmq.q_many_23").await.unwrap();
    let locked = [many.sends.remove(23), many.sends.remove(7)];
    let (test, mut verdicts) = many.solve().await;
    // All others were stored while the locks were held, and so is what comes next.
    for number in (0..QUEUES).filter(|number| !LOCKED.contains(number)) {
        send(&test, name(number), "\"again\"").await.unwrap().expect("a second send");
    }
    other.batch_execute("COMMIT").await.unwrap();
    let [late, early] = locked;
    verdicts.insert(7, early.await.unwrap());
    verdicts.insert(23, late.await.unwrap());
    for number in LOCKED {
        match &verdicts[number] {
            Ok(msg_id) => assert_eq!(rows(&test, number).await[0].0, *msg_id),
            Err(status) => {
                Refusal::expect(status, Code::Aborted, "QUEUE_BUSY");
                assert!(rows(&test, number).await.is_empty());
            }
        }
    }
    expect_stored(&test, &verdicts, &LOCKED).await;
}

#[tokio::test]
async fn a_queue_that_has_held_up_others_keeps_to_itself() {
    let many = Many::gather(
        &["--log", "info,pgmq_grpc::queue::merged=debug"],
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON pgmq.q_many_7 FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let (test, verdicts) = many.await.solve().await;
    expect_stored(&test, &verdicts, &[]).await;
    let log = test.server.log();
    // By its time, or on a slow machine by the limit of that.
    let told = ["queues have held up others", "have failed with those of others"];
    let is_told = |line: &str| told.iter().any(|told| line.contains(told)) && line.contains("many_7");
    assert!(log.lines().any(is_told), "{log}");
}

#[tokio::test]
async fn a_failed_group_leaves_its_connection_with_the_limits_that_it_had() {
    let many = Many::gather(
        &[],
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE check_violation; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON pgmq.q_many_7 FOR EACH ROW EXECUTE FUNCTION refuse();
         CREATE TABLE limits (statement text, lock text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO limits VALUES (current_setting('statement_timeout'), current_setting('lock_timeout')); RETURN NEW;
         END $$;
         CREATE TRIGGER note BEFORE INSERT ON pgmq.q_many_8 FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .await;
    let (test, _) = many.solve_anew().await;
    test.run("TRUNCATE limits").await;
    send(&test, name(8), "{}").await.unwrap().expect("a send");
    // Alone, and with the server's own limits.
    assert_eq!(test.value::<String>("SELECT statement || ' ' || lock FROM limits").await, "20s 2s");
}

#[tokio::test]
async fn who_loses_the_connection_in_a_group_is_told_that_the_outcome_is_unknown() {
    let many = Many::gather(
        &[],
        "CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); RETURN NEW;
         END $$;
         CREATE TRIGGER end_it BEFORE INSERT ON pgmq.q_many_5 FOR EACH ROW EXECUTE FUNCTION end_it()",
    )
    .await;
    let (test, verdicts) = many.solve().await;
    assert!(verdicts[5].is_err(), "{verdicts:?}");
    for (number, verdict) in verdicts.iter().enumerate() {
        match verdict {
            Ok(msg_id) => assert_eq!(rows(&test, number).await[0].0, *msg_id),
            Err(status) => {
                Refusal::expect(status, Code::Unknown, "OUTCOME_UNKNOWN");
                assert!(rows(&test, number).await.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_database_that_is_slow_for_a_moment_is_not_taken_for_its_queues() {
    // Whatever is inserted with little patience takes too long, and alone it does not.
    let mut stall = "CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF current_setting('statement_timeout') IN ('100ms', '20ms') THEN PERFORM pg_sleep(10); END IF; RETURN NEW;
         END $$;"
        .to_owned();
    for number in 0..QUEUES {
        stall += &format!(
            "CREATE TRIGGER stall BEFORE INSERT ON pgmq.q_many_{number} FOR EACH ROW EXECUTE FUNCTION stall();"
        );
    }
    let many = Many::gather(&["--log", "info,pgmq_grpc::queue::merged=debug"], &stall).await;
    let (test, verdicts) = many.solve().await;
    expect_stored(&test, &verdicts, &[]).await;
    // One a group, and the first to wait may have begun to lead before the others came.
    let blamed = test.server.log().matches("have failed with those of others").count();
    assert!((1..=QUEUES / 8).contains(&blamed), "{blamed} queues were blamed");
}

#[tokio::test]
async fn who_is_in_a_group_when_the_disk_fails_at_the_commit_is_told_that_the_outcome_is_unknown() {
    const FEW: usize = 6;
    if std::process::Command::new("prlimit").arg("--version").output().is_err() {
        return skip("a disk that fails at the commit", "there is no prlimit");
    }
    let postgres = OwnPostgres::start().await;
    let mut server = Server::start(&["--database-url", &postgres.url, "--pool-size", "1"]).await;
    server.expect_errors();
    let mut client = Client::connect(&server).await;
    client.create("gated").await;
    for number in 0..FEW {
        client.create(&name(number)).await;
        client.send(&name(number), "\"before\"").await;
    }
    // From its insert on, the process can write no file. What it writes next is the log, at the commit.
    postgres
        .run(
            "CREATE TABLE gate (is_open boolean);
             CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NEW;
             END $$;
             CREATE TRIGGER gate BEFORE INSERT ON pgmq.q_gated FOR EACH ROW EXECUTE FUNCTION wait_at_gate();
             CREATE FUNCTION lose_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               EXECUTE format('COPY (SELECT 1) TO PROGRAM %L',
                 'cat > /dev/null; prlimit --fsize=0 --pid ' || pg_backend_pid());
               RETURN NEW;
             END $$;
             CREATE TRIGGER lose_disk BEFORE INSERT ON pgmq.q_many_3 FOR EACH ROW EXECUTE FUNCTION lose_disk()",
        )
        .await;
    let first = send_by(&client, "gated".to_owned(), "{}");
    let sql = postgres.connect().await;
    eventually("the first at its gate", async || {
        let gated = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        sql.query_opt(gated, &[]).await.unwrap().map(drop)
    })
    .await;
    let sends: Vec<Sending> = (0..FEW).map(|number| send_by(&client, name(number), "\"after\"")).collect();
    let lanes = i32::try_from(FEW).unwrap() + 1;
    eventually_shows(&client, "all of them wait", |state| state.lanes == lanes).await;
    sql.batch_execute("INSERT INTO gate VALUES (true)").await.unwrap();
    first.await.unwrap().expect("the first send");
    let mut verdicts = Vec::new();
    for sending in sends {
        verdicts.push(sending.await.unwrap());
    }
    let is_unknown = |verdict: &Result<i64, Status>| {
        verdict.as_ref().is_err_and(|status| Refusal::of(status).reason == "OUTCOME_UNKNOWN")
    };
    assert!(verdicts.iter().any(is_unknown), "{verdicts:?}");
    let stored: Vec<i64> = eventually("the recovery", async || {
        let connected = tokio_postgres::connect(&postgres.url, tokio_postgres::NoTls).await;
        let (sql, connection) = connected.ok()?;
        tokio::spawn(connection);
        sql.batch_execute("DROP TRIGGER IF EXISTS lose_disk ON pgmq.q_many_3").await.ok()?;
        let count =
            |number| format!("(SELECT count(*) FROM pgmq.q_many_{number} WHERE message = '\"after\"')");
        let counts = (0..FEW).map(count).collect::<Vec<_>>().join(", ");
        sql.query_one(&format!("SELECT ARRAY[{counts}]"), &[]).await.ok().map(|row| row.get(0))
    })
    .await;
    for (verdict, stored) in verdicts.iter().zip(stored) {
        match verdict {
            Ok(_) => assert_eq!(stored, 1),
            Err(_) if is_unknown(verdict) => assert!(stored <= 1),
            Err(status) => {
                Refusal::expect(status, Code::Unavailable, "DATABASE_UNAVAILABLE");
                assert_eq!(stored, 0);
            }
        }
    }
    eventually("a send again", async || send_by(&client, name(3), "{}").await.unwrap().ok()).await;
}

//! Statements that wait in the database until the test lets them go.

use nix::sys::signal::Signal;
use tonic::Status;

use super::{Test, eventually};

/// A gate before the rows of a queue. It takes no lock, so that no lock timeout ends the wait; and who has lost its client
/// while it waits is not ended for that, as it would be each second.
pub(crate) struct Gate;

/// What becomes of a statement whose server is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The database brings it to its end.
    Finished,
    /// The database takes it back.
    Undone,
}

impl Fate {
    pub(crate) const BOTH: [Self; 2] = [Self::Finished, Self::Undone];
}

impl Gate {
    /// Closes the gate: from now on writes of a kind (`INSERT`, `UPDATE`, `DELETE`) to a queue wait before their first
    /// row.
    pub(crate) async fn close(test: &Test, queue: &str, kind: &str) -> Self {
        Self::by(test, &format!("TRIGGER gate BEFORE {kind} ON pgmq.q_{queue} FOR EACH ROW")).await
    }

    /// Closes the gate for what a queue gets beyond an id.
    pub(crate) async fn close_beyond(test: &Test, queue: &str, msg_id: i64) -> Self {
        let rows = format!("pgmq.q_{queue} FOR EACH ROW WHEN (NEW.msg_id > {msg_id})");
        Self::by(test, &format!("TRIGGER gate BEFORE INSERT ON {rows}")).await
    }

    /// Closes the gate wherever a trigger of these words stands.
    pub(crate) async fn by(test: &Test, trigger: &str) -> Self {
        test.run(&format!(
            "CREATE TABLE gate (is_open boolean);
             CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               PERFORM set_config('client_connection_check_interval', '0', true);
               WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP;
               IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
               RETURN NEW;
             END $$;
             CREATE {trigger} EXECUTE FUNCTION wait_at_gate()"
        ))
        .await;
        Self
    }

    /// Waits until a statement of a name, or a `commit`, has come to the database, and gives the process that runs it.
    pub(crate) async fn arrival(&self, test: &Test, statement: &str) -> i32 {
        let running = "SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'active'
              AND (query LIKE '-- pgmq-grpc: ' || $1 || '%' OR $1 = 'commit' AND query LIKE '%; COMMIT')";
        eventually("the statement", async || {
            let rows = test.sql.query(running, &[&statement]).await.expect("the activity");
            rows.first().map(|row| row.get("pid"))
        })
        .await
    }

    /// Lets everybody go.
    pub(crate) async fn open(&self, test: &Test) {
        test.run("INSERT INTO gate VALUES (true)").await;
    }

    /// Cuts the connection of a process.
    pub(crate) async fn terminate(&self, test: &Test, pid: i32) {
        test.sql.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.expect("a termination");
    }

    /// Kills the test's server while a statement of a call waits, and lets the statement end.
    pub(crate) async fn kill_within<T: Send + 'static>(
        &self,
        test: &Test,
        statement: &str,
        fate: Fate,
        call: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) {
        let calling = tokio::spawn(call);
        let pid = self.arrival(test, statement).await;
        test.server.signal(Signal::SIGKILL);
        assert!(calling.await.expect("no panic").is_err(), "a dead server has answered");
        if fate == Fate::Undone {
            self.terminate(test, pid).await;
            until_ended(test, pid).await;
        }
        self.open(test).await;
        until_ended(test, pid).await;
    }
}

/// Waits until a process of the database is gone.
async fn until_ended(test: &Test, pid: i32) {
    let gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
    eventually("the end of a process", async || {
        let gone = test.sql.query_one(gone, &[&pid]).await.expect("the activity");
        gone.get::<_, bool>(0).then_some(())
    })
    .await;
}

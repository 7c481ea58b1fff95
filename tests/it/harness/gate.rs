//! Statements that wait in the database until the test lets them go.

use super::{Test, eventually};

/// A gate before the rows of a queue. It takes no lock, so that no lock timeout ends the wait.
pub(crate) struct Gate;

impl Gate {
    /// Closes the gate: from now on writes of a kind (`INSERT`, `UPDATE`, `DELETE`) to a queue wait before their first
    /// row.
    pub(crate) async fn close(test: &Test, queue: &str, kind: &str) -> Self {
        test.run(&format!(
            "CREATE TABLE gate (is_open boolean);
             CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP;
               IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
               RETURN NEW;
             END $$;
             CREATE TRIGGER gate BEFORE {kind} ON pgmq.q_{queue} FOR EACH ROW EXECUTE FUNCTION wait_at_gate()"
        ))
        .await;
        Self
    }

    /// Waits until a statement of a name has come to the database, and gives the process that runs it.
    pub(crate) async fn arrival(&self, test: &Test, statement: &str) -> i32 {
        let running = "SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'active' AND query LIKE '-- pgmq-grpc: ' || $1 || '%'";
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
}

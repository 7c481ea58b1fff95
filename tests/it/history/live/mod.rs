//! Histories of real servers: many kinds of callers at once, disturbed at random, and judged in the end.
//!
//! `PGMQ_GRPC_TEST_SEED` repeats a run's random decisions; what the machine's timing makes of them differs. Each run takes
//! `PGMQ_GRPC_TEST_SECONDS`, 8 by default, and as long again at most until its queues are empty.

mod faults;
mod plain_sql;
mod readers;
mod senders;
mod transactions;
mod worker;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::checker::check;
use super::record::{History, Row, Send, Tables};
use super::report;
use crate::harness::{OwnPostgres, TestDatabase, eventually};
use faults::Servers;
use worker::{Run, Worker};

/// The queue of everybody.
const ORDERS: &str = "orders";

/// The queue of FIFO groups, of which only heads are read.
const GROUPS: &str = "groups";

/// The queue of pops.
const POPS: &str = "pops";

/// The queue to which transactions send.
const RESULTS: &str = "results";

/// The queue in which little happens, so that who waits for it waits long.
const QUIET: &str = "quiet";

const QUEUES: [&str; 5] = [ORDERS, GROUPS, POPS, RESULTS, QUIET];

/// How the bodies begin that the table of [`ORDERS`] refuses.
const DOOMED: &str = "doomed";

/// The longest that a visible message may wait beside a reader, on a slow and busy machine.
const PATIENCE: i64 = 6_000_000;

/// A number of the environment.
#[expect(clippy::disallowed_methods, reason = "the suite is set up by the environment")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// The callers of a run that are at work.
struct Callers {
    run: Arc<Run>,
    tasks: JoinSet<()>,
}

impl Callers {
    fn add<F>(&mut self, who: &str, count: usize, work: impl Fn(Worker) -> F)
    where
        F: Future<Output = ()> + std::marker::Send + 'static,
    {
        for number in 0..count {
            self.tasks.spawn(work(Worker::new(&self.run, &format!("{who}-{number}"))));
        }
    }

    /// Everybody who is in every run.
    fn start(run: &Arc<Run>) -> Self {
        let mut callers = Self { run: Arc::clone(run), tasks: JoinSet::new() };
        callers.add("sender", 6, senders::one_by_one);
        callers.add("batch-sender", 2, senders::in_batches);
        callers.add("reader", 4, readers::by_batches);
        callers.add("follower", 4, readers::by_stream);
        callers.add("popper", 1, readers::by_pops);
        callers.add("transactor", 2, transactions::by_transact);
        callers.add("interactor", 2, transactions::interactively);
        callers.add("sql", 2, plain_sql::by_functions);
        callers.add("quiet-sender", 1, send_quietly);
        callers.add("quiet-sql", 1, plain_sql::quietly);
        callers.add("waiter", 2, wait_for_the_quiet);
        callers
    }

    async fn end(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a caller that does not panic");
        }
    }
}

/// Sends to the quiet queue now and then.
async fn send_quietly(mut worker: Worker) {
    worker.impatience = 0;
    while worker.pause(1_500).await {
        let delay = if worker.chance(30) { 700_000 } else { 0 };
        let send = Send { queue: QUIET.to_owned(), body: worker.body(), delay, ..Send::default() };
        senders::send_one(&mut worker, send).await;
    }
}

/// Waits long for the quiet queue, and sometimes lets a message fall due again.
async fn wait_for_the_quiet(mut worker: Worker) {
    worker.impatience = 0;
    while worker.pause(10).await {
        let messages = readers::read(&mut worker, QUIET, 5, 1.0, 10.0).await;
        if worker.chance(80) {
            readers::delete(&mut worker, QUIET, &messages, false).await;
        }
    }
}

/// Makes the queues, and the table that refuses some messages.
async fn prepare(database_url: &str) -> History {
    let run = Run::new(0, Vec::new(), database_url.to_owned(), History::default());
    let client = eventually("a connection", async || plain_sql::connect(&run).await).await;
    for queue in QUEUES {
        client.batch_execute(&format!("SELECT pgmq.create('{queue}')")).await.expect("a queue");
    }
    let refuse = format!(
        "ALTER TABLE pgmq.q_{ORDERS} ADD CONSTRAINT refused CHECK (message::text NOT LIKE '\"{DOOMED}%')"
    );
    client.batch_execute(&refuse).await.expect("a constraint");
    let apart = plain_sql::clocks_apart(&client).await;
    assert!(apart < 5_000_000, "the clocks of database and machine are {apart} µs apart");
    History { deduplication_window: 300_000_000, patience: PATIENCE, ..History::default() }
}

/// Reads and deletes everything that is left, through the servers.
///
/// # Panics
/// If a queue does not get shorter for [`crate::harness::PATIENCE`]: what is in it, nobody can read.
async fn drain(run: &Arc<Run>) {
    let mut worker = Worker::new(run, "drainer");
    worker.impatience = 0;
    for queue in QUEUES {
        let mut left = i64::MAX;
        while left > 0 {
            left = eventually(&format!("fewer messages than {left} in {queue}"), async || {
                let messages = readers::read(&mut worker, queue, 500, 5.0, 0.2).await;
                readers::delete(&mut worker, queue, &messages, false).await;
                let client = plain_sql::connect(run).await?;
                let count =
                    client.query_one(&format!("SELECT count(*) FROM pgmq.q_{queue}"), &[]).await.ok()?;
                Some(count.get::<_, i64>(0)).filter(|&count| count < left)
            })
            .await;
        }
    }
}

/// What the tables hold, once nothing of the servers is under way any more.
async fn tables(run: &Run) -> BTreeMap<String, Tables> {
    let client = eventually("a connection", async || plain_sql::connect(run).await).await;
    eventually("the end of all statements", async || {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'
            AND pid <> pg_backend_pid() AND query ~ '^-- pgmq-grpc: (send|delete|archive|set_vt|give_back)'";
        let busy = client.query_one(sql, &[]).await.expect("the activity").get::<_, i64>(0);
        (busy == 0).then_some(())
    })
    .await;
    let mut tables = BTreeMap::new();
    for queue in QUEUES {
        let rows = async |table: String| {
            let sql = format!("SELECT msg_id, message::text FROM pgmq.{table} ORDER BY msg_id");
            let rows = client.query(&sql, &[]).await.expect("rows");
            rows.iter().map(|row| Row { msg_id: row.get(0), body: row.get(1) }).collect()
        };
        let (queue_rows, archive) = (rows(format!("q_{queue}")).await, rows(format!("a_{queue}")).await);
        tables.insert(queue.to_owned(), Tables { queue: queue_rows, archive });
    }
    tables
}

/// Lets callers and faults work for the run's time, waits until all is quiet, and judges the history.
async fn judge<F>(name: &str, run: Arc<Run>, disturb: impl FnOnce(Arc<Run>) -> F)
where
    F: Future,
{
    let seconds = setting("PGMQ_GRPC_TEST_SECONDS").unwrap_or(8);
    eprintln!("history {name}: PGMQ_GRPC_TEST_SEED={} for {seconds} s", run.seed);
    let callers = Callers::start(&run);
    let stopper = Arc::clone(&run);
    let stop = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stopper.stop.cancel();
    });
    // What was stopped is running again when this ends; it lives until the tables are read.
    let disturbed = disturb(Arc::clone(&run)).await;
    stop.await.expect("a stop");
    callers.end().await;
    drain(&run).await;
    let at_the_end = tables(&run).await;
    drop(disturbed);

    let history = History { at_the_end, ..run.history() };
    let violations = check(&history);
    eprintln!("history {name}: {}; {} violations", report::counts(&history), violations.len());
    if let Some(first) = violations.first() {
        let head = format!(
            "seed {}\n{}",
            run.seed,
            violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        );
        let file = report::write(&history, &format!("{name}-{}", run.seed), &head);
        panic!(
            "{} violations with seed {}, all in {}; the first one:\n{first}",
            violations.len(),
            run.seed,
            file.display()
        );
    }
}

fn seed() -> u64 {
    setting("PGMQ_GRPC_TEST_SEED").unwrap_or_else(rand::random)
}

/// Flags that make a server notice a lost database soon.
const OFTEN: [&str; 2] = ["--health-interval", "200ms"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_keeps_its_promises_while_rows_are_locked_and_connections_cut() {
    let database = TestDatabase::create().await;
    let servers = Servers::start(1, &database.url, &OFTEN).await;
    let history = prepare(&database.url).await;
    let run = Run::new(seed(), servers.addresses(), database.url.clone(), history);
    judge("one-server", run, async |run| {
        tokio::join!(
            plain_sql::by_locks(Worker::new(&run, "locker")),
            faults::terminate_backends(Worker::new(&run, "terminator"))
        );
        servers
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_keep_their_promises_while_they_are_killed_and_stopped() {
    let database = TestDatabase::create().await;
    let servers = Servers::start(2, &database.url, &OFTEN).await;
    let history = prepare(&database.url).await;
    let run = Run::new(seed(), servers.addresses(), database.url.clone(), history);
    judge("two-servers", run, async |run| {
        let locks = plain_sql::by_locks(Worker::new(&run, "locker"));
        tokio::join!(servers.end_and_start(Worker::new(&run, "killer")), locks).0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_keep_their_promises_while_postgres_crashes() {
    let postgres = OwnPostgres::start().await;
    postgres.run("ALTER SYSTEM RESET fsync").await;
    postgres.run("SELECT pg_reload_conf()").await;
    let servers = Servers::start(2, &postgres.url, &OFTEN).await;
    let history = prepare(&postgres.url).await;
    let run = Run::new(seed(), servers.addresses(), postgres.url.clone(), history);
    judge("postgres-crashes", run, async |run| {
        (faults::restart_postgres(postgres, Worker::new(&run, "crasher")).await, servers)
    })
    .await;
}

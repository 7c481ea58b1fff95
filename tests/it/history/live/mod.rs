//! Histories of real servers: many kinds of callers at once, disturbed at random, and judged in the end.
//!
//! Callers send by every way there is, unary, in batches, to topics, in transactions, over `Produce`, with deduplication ids and
//! without; they read by `ReadBatch`, `Read`, `Consume` and `Pop`, and settle, too late, twice, or never. Others purge and
//! drop queues, lay them out anew, change their policies, look into them and their archives, bring what was archived or set
//! aside back or elsewhere, and use plain SQL. Each kind is done to its end once at least, or the run fails.
//!
//! `PGMQ_GRPC_TEST_SEED` repeats a run's random decisions; what the machine's timing makes of them differs. Each run takes
//! `PGMQ_GRPC_TEST_SECONDS`, 8 by default, and as long again at most until its queues are empty.

mod aside;
mod consumers;
mod elsewhere;
mod faults;
mod keepers;
mod keyed;
mod lists;
mod movers;
mod owners;
mod plain_sql;
mod policies;
mod producers;
mod queues;
mod readers;
mod senders;
mod transactions;
mod worker;
mod worn;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::checker::check;
use super::record::{History, Send};
use super::report;
use crate::harness::{OwnPostgres, Pair, TestDatabase};
use faults::Servers;
use queues::{dead_letters, drain, prepare, tables};
use worker::{Run, Worker};

/// The queue of everybody.
const ORDERS: &str = "orders";

/// The queue of FIFO groups, of which only heads are read.
const GROUPS: &str = "groups";

/// The queue of messages that have deduplication ids.
const KEYED: &str = "keyed";

/// The queue that is read through `Consume` alone.
const CONSUMED: &str = "consumed";

/// The queue of pops.
const POPS: &str = "pops";

/// The queue whose messages are handed over a few times only, and then go to [`BURIED`].
const WORN: &str = "worn";

/// The dead-letter queue, which nobody reads.
const BURIED: &str = "buried";

/// The dead-letter queue of [`GROUPS`], from which nothing comes back there.
const BURIED_GROUPS: &str = "buried_groups";

/// The queue to which transactions send.
const RESULTS: &str = "results";

/// The queue in which little happens, so that who waits for it waits long.
const QUIET: &str = "quiet";

/// The queue whose messages go aside and come back.
const HOMES: &str = "homes";

/// Where they are meanwhile.
const ASIDE: &str = "aside";

/// The queue whose archive is brought back.
const KEPT: &str = "kept";

/// The queue whose archive is kept for a few seconds only.
const FLEETING: &str = "fleeting";

/// The queue to which nobody sends: archived messages and dead letters of others are moved there, now and then.
const ELSEWHERE: &str = "elsewhere";

const QUEUES: [&str; 13] =
    [ORDERS, GROUPS, KEYED, CONSUMED, POPS, WORN, RESULTS, QUIET, HOMES, ASIDE, KEPT, FLEETING, ELSEWHERE];

/// What is sent with this key goes to [`KEYED`] and [`RESULTS`].
const ROUTING_KEY: &str = "audit.all";

/// How long servers remember deduplication ids: short, so that windows end, too.
const WINDOW: &str = "2s";

/// What each run does to its end at least once, however slow the machine is; see [`report::reached`].
const KINDS: [&str; 50] = [
    "Archive",
    "Consume",
    "CreateQueue",
    "DeadLetter",
    "Delete",
    "DeleteArchivedMessages",
    "DropQueue",
    "Extend",
    "ListArchivedMessages",
    "ListMessages",
    "OpenTransaction",
    "Pop",
    "Produce",
    "PurgeQueue",
    "Read",
    "ReadBatch",
    "RedriveMessages",
    "Release",
    "ReplayArchivedMessages",
    "Send",
    "SendBatch",
    "SendTopic",
    "SetQueueLayout",
    "SetVisibilityTimeout",
    "Settle",
    "Transact",
    "UpdateQueue",
    "a dead letter by SQL",
    "pgmq.delete",
    "pgmq.read",
    "pgmq.send",
    "a repeated send",
    "a repeated Transact",
    "a receipt that is STALE",
    "a message that is NOT_FOUND",
    "a message that is given back",
    "a release that goes aside",
    "a release by the policy",
    "a dead letter in a transaction",
    "a replay by ids",
    "a replay by time or count",
    "a redrive by ids",
    "a redrive by count",
    "archived messages that are deleted",
    "a replay elsewhere",
    "a redrive elsewhere",
    "a message that is too large",
    "a read that waits by the policy",
    "a list of a queue",
    "a list of an archive",
];

/// How the bodies begin that the table of [`ORDERS`] refuses.
const DOOMED: &str = "doomed";

/// The longest that a visible message may wait beside a reader, on a slow and busy machine.
const PATIENCE: i64 = 6_000_000;

/// Two histories are made at a time: more would only make each other slow.
static TURNS: Semaphore = Semaphore::const_new(2);

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
        callers.add("sender", 4, senders::one_by_one);
        callers.add("batch-sender", 2, senders::in_batches);
        callers.add("producer", 2, producers::by_producing);
        callers.add("key-sender", 3, keyed::by_keys);
        callers.add("reader", 3, readers::by_batches);
        callers.add("follower", 3, readers::by_stream);
        callers.add("consumer", 5, consumers::by_consuming);
        callers.add("popper", 1, readers::by_pops);
        callers.add("failer", 2, worn::by_failing);
        callers.add("transactor", 2, transactions::by_transact);
        callers.add("interactor", 2, transactions::interactively);
        callers.add("sql", 2, plain_sql::by_functions);
        callers.add("quiet-sender", 1, send_quietly);
        callers.add("quiet-sql", 1, plain_sql::quietly);
        callers.add("waiter", 2, wait_for_the_quiet);
        callers.add("archivist", 2, keepers::archive);
        callers.add("replayer", 2, keepers::bring_back);
        callers.add("redriver", 2, keepers::redrive_letters);
        callers.add("forwarder", 2, elsewhere::forward);
        callers.add("dweller", 1, elsewhere::wait);
        callers.add("dwelling-follower", 1, elsewhere::follow);
        callers.add("setter-aside", 1, aside::in_transactions);
        callers.add("looker", 2, lists::look);
        callers.add("policy-maker", 1, policies::change);
        callers.add("mover", 2, movers::back_and_forth);
        callers.add("owner", 2, owners::make_and_drop);
        callers.add("purger", 1, owners::purge_results);
        callers.add("layouter", 1, owners::lay_out);
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
    worker.leaves_at_the_end = true;
    while worker.pause(10).await {
        let messages = readers::read(&mut worker, QUIET, 5, 1.0, 10.0).await;
        if worker.chance(80) {
            readers::delete(&mut worker, QUIET, &messages, false).await;
        }
    }
}

/// Waits until every kind of call was done once: that is soon, now that nobody disturbs.
///
/// # Panics
/// If some kind is not done for so long that it never will be.
async fn until_every_kind_is_done(run: &Run, name: &str) {
    let started = Instant::now();
    loop {
        let reached = run.reached();
        let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !reached.contains(kind)).collect();
        if missing.is_empty() {
            return;
        }
        let counts = || report::counts(&run.history());
        assert!(started.elapsed() < 10 * crate::harness::PATIENCE, "{name}: no {missing:?}; {}", counts());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Lets callers and faults work for the run's time, waits until all is quiet, and judges the history.
async fn judge<F>(name: &str, run: Arc<Run>, disturb: impl FnOnce(Arc<Run>) -> F)
where
    F: Future,
{
    let seconds = setting("PGMQ_GRPC_TEST_SECONDS").unwrap_or(8);
    eprintln!("history {name}: PGMQ_GRPC_TEST_SEED={} for {seconds} s", run.seed);
    let started = Instant::now();
    let callers = Callers::start(&run);
    let stopper = Arc::clone(&run);
    let peace = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stopper.peace.cancel();
    });
    // What was stopped is running again when this ends; it lives until the tables are read.
    let disturbed = disturb(Arc::clone(&run)).await;
    peace.await.expect("peace");
    let at_peace = started.elapsed();
    until_every_kind_is_done(&run, name).await;
    let all_done = started.elapsed();
    run.stop.cancel();
    callers.end().await;
    let at_rest = started.elapsed();
    drain(&run).await;
    let at_the_end = tables(&run).await;
    let dead_letters = dead_letters(&run).await;
    let ended = run.now();
    let empty = started.elapsed();
    eprintln!(
        "history {name}: peace after {at_peace:.1?}, every kind done after {all_done:.1?}, at rest after {at_rest:.1?}, empty after {empty:.1?}"
    );
    drop(disturbed);

    let history = History { at_the_end, dead_letters, ended, ..run.history() };
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

/// Flags that make a server notice a lost database soon, and forget deduplication ids soon.
const OFTEN: [&str; 4] = ["--health-interval", "200ms", "--deduplication-window", WINDOW];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_keeps_its_promises_while_rows_are_locked_and_connections_cut() {
    let _turn = TURNS.acquire().await.expect("a turn");
    let database = TestDatabase::create().await;
    let servers = Servers::start(1, &database.url, &OFTEN).await;
    let run = prepare(seed(), servers.addresses(), &database.url).await;
    judge("one-server", run, async |run| {
        tokio::join!(
            plain_sql::by_locks(Worker::who_disturbs(&run, "locker")),
            faults::terminate_backends(Worker::who_disturbs(&run, "terminator"))
        );
        servers
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_keep_their_promises_while_they_are_killed_and_stopped() {
    let _turn = TURNS.acquire().await.expect("a turn");
    let database = TestDatabase::create().await;
    let servers = Servers::start(2, &database.url, &OFTEN).await;
    let run = prepare(seed(), servers.addresses(), &database.url).await;
    judge("two-servers", run, async |run| {
        let locks = plain_sql::by_locks(Worker::who_disturbs(&run, "locker"));
        tokio::join!(servers.end_and_start(Worker::who_disturbs(&run, "killer")), locks).0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_keep_their_promises_while_postgres_crashes() {
    let _turn = TURNS.acquire().await.expect("a turn");
    let postgres = OwnPostgres::start().await;
    postgres.run("ALTER SYSTEM RESET fsync").await;
    postgres.run("SELECT pg_reload_conf()").await;
    let servers = Servers::start(2, &postgres.url, &OFTEN).await;
    let run = prepare(seed(), servers.addresses(), &postgres.url).await;
    judge("postgres-crashes", run, async |run| {
        (faults::restart_postgres(postgres, Worker::who_disturbs(&run, "crasher")).await, servers)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_keep_their_promises_while_a_standby_is_promoted() {
    let _turn = TURNS.acquire().await.expect("a turn");
    let Some(pair) = Pair::start("a history with a failover").await else { return };
    let servers = Servers::start(2, &pair.url, &OFTEN).await;
    let run = prepare(seed(), servers.addresses(), &true_primary_first(&pair.url)).await;
    judge("failover", run, async |run| {
        (faults::promote(pair, Worker::who_disturbs(&run, "promoter")).await, servers)
    })
    .await;
}

/// The standby before the primary: plain SQL users know no timelines, and would follow the old primary when it returns.
fn true_primary_first(url: &str) -> String {
    let (login, place) = url.rsplit_once('@').expect("a url with a user");
    let (hosts, database) = place.split_once('/').expect("a url with a database");
    let hosts: Vec<&str> = hosts.split(',').rev().collect();
    format!("{login}@{}/{database}?target_session_attrs=read-write", hosts.join(","))
}

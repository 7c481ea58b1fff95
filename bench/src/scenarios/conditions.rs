//! How it fares in conditions that are not the best: many queues, long queues, waiting consumers, too many callers.

use std::time::Duration;

use anyhow::Result;

use super::{Group, rabbitmq};
use crate::lab::{Lab, Layout};
use crate::peers::python::Python;
use crate::report::{Goal, Measure, Row};
use crate::rounds::{Pace, Side, Work};
use crate::trial::{Load, PeerLoad};

const QUEUE: &str = "conditions";
const EMPTY: &str = "conditions_empty";
const PLAIN: &str = "conditions_plain";
const SLOW: &str = "conditions_slow";

/// The callers that the server serves at its best.
const FULL: usize = 1_024;

/// Those of them whose times are told where the others are a crowd.
const MEASURED: usize = 64;

const CROWD_P99: Measure = Measure::Figure("crowd_p99_ms", "ms");

/// A trickle to a consumer that waits.
pub async fn latency(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(QUEUE, Layout::Tuned).await?;
    let (server, queue) = (lab.server.address.clone(), QUEUE.to_owned());
    let ours = Work::Load(Load::Latency { server, queue, per_second: 200 });
    let sides = vec![
        Side::new("latency", "send to waiting Consume, 200/s", ours).on(QUEUE, 0),
        Side::new(
            "rabbitmq-latency",
            "publish to waiting consumer of a RabbitMQ quorum queue, 200/s",
            rabbitmq(lab, |url| PeerLoad::RabbitmqLatency { url, per_second: 200 }),
        ),
    ];
    let row = |which: &str, goal, measure| {
        Row::new(
            &format!("send to waiting stream consumer, 200 messages/s, {which} / RabbitMQ quorum's"),
            goal,
        )
        .measuring(measure)
        .of(&["latency"], &["rabbitmq-latency"], "RabbitMQ")
    };
    let rows = vec![row("p50", Goal::AtMost(1.5), Measure::P50), row("p99", Goal::AtMost(2.0), Measure::P99)];
    let mut group = Group::new(sides, rows);
    // 200 a second are few for a 99th of 100.
    group.measure = (!pace.quick).then_some(Duration::from_secs(6));
    Ok(group)
}

/// Consumers that wait.
pub async fn idle(lab: &Lab, pace: Pace) -> Result<Group> {
    let (count, streams) = if pace.quick { (100, 1_000) } else { (1_000, 10_000) };
    // Of their own: those of the sends are full of messages, which consumers would hold, and get again and again.
    let queues = many_queues(lab, "idle", count).await?;
    let server = lab.server.address.clone();
    let mut side = Side::new(
        "idle",
        &format!("{streams} idle stream consumers on {count} queues"),
        Work::Load(Load::Idle { server, queues, streams }),
    );
    side.looked_at = true;
    let row = |what: &str, most, figure, unit| {
        Row::new(&format!("{streams} idle stream consumers on {count} queues: {what}"), Goal::AtMost(most))
            .measuring(Measure::Figure(figure, unit))
            .of(&["idle"], &[], "")
    };
    let rows = vec![
        row("database connections", 8.0, "connections", "connections"),
        row("queries per second", 2.0, "transactions_per_second", "transactions/s"),
        row("resident memory", 300.0, "resident_mib", "MiB"),
    ];
    let mut group = Group::new(vec![side], rows);
    group.measure = Some(Duration::from_secs(10));
    group.warm_up = Some(Duration::from_secs(if pace.quick { 2 } else { 5 }));
    group.rounds = pace.quick.then_some(1);
    Ok(group)
}

/// One queue, and many in turn.
pub async fn queues(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(QUEUE, Layout::Tuned).await?;
    let count = if pace.quick { 100 } else { 1_000 };
    let many = many_queues(lab, "many", count).await?;
    let send = |queues: Vec<String>| {
        Work::Load(Load::Send { server: lab.server.address.clone(), queues, callers: FULL, connections: 4 })
    };
    let sides = vec![
        Side::new("many-queues", &format!("unary Send to {count} queues in turn"), send(many)),
        Side::new("one-queue", "unary Send to one queue", send(vec![QUEUE.to_owned()])).on(QUEUE, 0),
    ];
    let name = format!("sends with {count} queues in turn / with one queue");
    let row = Row::new(&name, Goal::AtLeast(0.5)).of(&["many-queues"], &["one-queue"], "ourselves");
    Ok(Group::new(sides, vec![row]))
}

/// Long queues.
pub async fn backlog(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(QUEUE, Layout::Tuned).await?;
    let (long, held) = if pace.quick { (100_000, 30_000) } else { (1_000_000, 300_000) };
    let many = ((pace.warm_up + pace.measure).as_secs_f64().ceil() * 110_000.0) as u64;
    let server = || lab.server.address.clone();
    let send = |id: &str, title: &str| {
        let queues = vec![QUEUE.to_owned()];
        Side::new(
            id,
            title,
            Work::Load(Load::Send { server: server(), queues, callers: FULL, connections: 4 }),
        )
    };
    let consume = |id: &str, title: &str, filled: u64| {
        let (queue, workers) = (QUEUE.to_owned(), 64);
        let load =
            Load::Consume { server: server(), queue, workers, streams: 1, awaits_verdict: false, filled };
        Side::new(id, title, Work::Load(load))
    };
    let sides = vec![
        send("send-empty", "unary Send, empty queue").on(QUEUE, 0),
        send("send-long", "unary Send, long queue").on(QUEUE, long),
        send("send-held", "unary Send, many in flight").on(QUEUE, 0).behind(held),
        consume("consume-short", "Consume, no more than is consumed", many).on(QUEUE, many),
        consume("consume-long", "Consume, long queue", long).on(QUEUE, long.max(many)),
        consume("consume-held", "Consume behind many in flight", many).on(QUEUE, many).behind(held),
    ];
    let ours = "ourselves";
    let rows = vec![
        Row::new(&format!("send with {long} messages waiting / empty queue"), Goal::AtLeast(0.85)).of(
            &["send-long"],
            &["send-empty"],
            ours,
        ),
        Row::new(&format!("consume with {long} messages waiting / short queue"), Goal::AtLeast(0.85)).of(
            &["consume-long"],
            &["consume-short"],
            ours,
        ),
        Row::new(&format!("send with {held} in flight at the head / empty queue"), Goal::Report).of(
            &["send-held"],
            &["send-empty"],
            ours,
        ),
        Row::new(&format!("consume with {held} in flight at the head / short queue"), Goal::Report).of(
            &["consume-held"],
            &["consume-short"],
            ours,
        ),
    ];
    Ok(Group::new(sides, rows))
}

/// A look into a long queue, of which a part is in flight.
pub async fn browse(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(QUEUE, Layout::Tuned).await?;
    let (long, held) = if pace.quick { (100_000, 30_000) } else { (1_000_000, 300_000) };
    let load = Load::Browse { server: lab.server.address.clone(), queue: QUEUE.to_owned() };
    let title = format!("ListMessages, first pages of {long} messages and {held} in flight");
    let side = Side::new("browse", &title, Work::Load(load)).on(QUEUE, long).behind(held);
    let row = Row::new(&format!("first page of {long} messages, of any state: p99"), Goal::AtMost(50.0));
    let row = row.measuring(Measure::P99).of(&["browse"], &[], "");
    Ok(Group::new(vec![side], vec![row]))
}

/// Producers and consumers at once.
pub async fn mixed(lab: &Lab, _: Pace) -> Result<Group> {
    lab.create(EMPTY, Layout::Tuned).await?;
    lab.create(PLAIN, Layout::Pgmq).await?;
    let (server, queue) = (lab.server.address.clone(), EMPTY.to_owned());
    let ours = Work::Load(Load::Mixed { server, queue, producers: 50, workers: 50 });
    let python = Work::Python(Python { kind: "mixed", queue: PLAIN.to_owned(), callers: 100 });
    let sides = vec![
        Side::new("mixed", "50 producers (Produce) and 50 workers (Consume)", ours).on(EMPTY, 0),
        Side::new("pgmq-py-mixed", "pgmq-py, 50 + 50 threads on 80 connections", python).on(PLAIN, 0),
        Side::new(
            "rabbitmq-mixed",
            "RabbitMQ quorum queue, 50 publishers and 50 consumers' worth of prefetch",
            rabbitmq(lab, |url| PeerLoad::RabbitmqMixed { url, producers: 50, consumers: 50 }),
        ),
    ];
    let rows = vec![
        Row::new("mixed: 50 producers and 50 consumers, end to end / pgmq-py", Goal::AtLeast(20.0))
            .of(&["mixed"], &["pgmq-py-mixed"], "pgmq-py")
            .noting("pgmq-py's threads share 80 connections, for Postgres takes 100 in all"),
        Row::new("mixed: 50 producers and 50 consumers, end to end / RabbitMQ", Goal::AtLeast(1.0)).of(
            &["mixed"],
            &["rabbitmq-mixed"],
            "RabbitMQ",
        ),
    ];
    Ok(Group::new(sides, rows))
}

/// Ten times the callers that fill the server, and ten times those that fill a slow database. Few of them are
/// measured, in a process of their own: what waits in a client of thousands is its own affair. In the first case the
/// processors are busy with the crowd's client as much as with the server; in the second both have time to spare.
pub async fn overload(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(QUEUE, Layout::Tuned).await?;
    lab.create(SLOW, Layout::Tuned).await?;
    lab.sql.slow_down(SLOW, 50).await?;
    let (long, short) = if pace.quick { (10, 5) } else { (60, 15) };
    let side = |id: &str, queue: &str, all: usize, seconds: u64| {
        let (server, on) = (lab.server.address.clone(), queue.to_owned());
        let load = Load::Overload { server, queue: on, callers: MEASURED, crowd: all - MEASURED };
        let database = if queue == SLOW { ", slow database" } else { "" };
        let title = format!(
            "unary Send{database}, {all} callers, {MEASURED} measured, the refused back when told to"
        );
        let side = Side::new(id, &title, Work::Load(load)).on(queue, 0);
        Side { measure: Some(Duration::from_secs(seconds)), ..side }
    };
    let sides = vec![
        side("unloaded", QUEUE, FULL, short),
        side("overload", QUEUE, 10 * FULL, long),
        side("slow-unloaded", SLOW, FULL, short),
        side("slow-overload", SLOW, 10 * FULL, long),
    ];
    let mut rows = Vec::new();
    for (prefix, what, note) in [
        (
            "",
            "ten times the capacity",
            "capacity: the 1,024 callers that fill the server, each sending again when answered",
        ),
        ("slow-", "ten times the capacity of a slow database", "each statement of sends takes 50 ms longer"),
    ] {
        let (overload, unloaded) = (format!("{prefix}overload"), format!("{prefix}unloaded"));
        let compared = |name: &str, goal, measure| {
            Row::new(&format!("{what}: {name} / at capacity"), goal).measuring(measure).of(
                &[&overload],
                &[&unloaded],
                "ourselves",
            )
        };
        let figure = |name: &str, figure, unit, goal| {
            Row::new(&format!("{what}: {name}"), goal).measuring(Measure::Figure(figure, unit)).of(
                &[&overload],
                &[],
                "",
            )
        };
        rows.extend([
            compared("accepted calls' p99", Goal::AtMost(2.0), Measure::P99).noting(note),
            compared("messages", Goal::Report, Measure::Rate),
            compared("the crowd's p99, with its own client's queue", Goal::Report, CROWD_P99),
            figure("refusals' p99", "refused_p99_ms", "ms", Goal::AtMost(50.0)),
            figure("the crowd's refusals' p99", "crowd_refused_p99_ms", "ms", Goal::Report),
            figure("the crowd's refusals", "crowd_refused", "calls", Goal::Report),
            figure("resident memory, peak", "resident_peak_mib", "MiB", Goal::Report),
        ]);
    }
    let mut group = Group::new(sides, rows);
    // A crowd that comes at once is a burst first, which is let in and done.
    group.warm_up = Some(Duration::from_secs(5));
    group.rounds = Some(1);
    Ok(group)
}

async fn many_queues(lab: &Lab, prefix: &str, count: usize) -> Result<Vec<String>> {
    let queues: Vec<String> = (0..count).map(|number| format!("{prefix}_{number:04}")).collect();
    eprintln!("making {count} queues");
    lab.create_many(&queues).await?;
    Ok(queues)
}

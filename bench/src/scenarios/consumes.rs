//! Reading and settling, one by one and in batches.

use anyhow::Result;

use super::{Group, SIZES_MEASURE, rabbitmq};
use crate::lab::{Lab, Layout};
use crate::peers::pgbench::Pgbench;
use crate::report::{Goal, Measure, Row};
use crate::rounds::{Pace, Side, Work};
use crate::trial::{Load, PeerLoad};

const TUNED: &str = "consume_tuned";
const PLAIN: &str = "consume_plain";

const PGBENCH: [&str; 3] = ["pgbench-read-8", "pgbench-read-16", "pgbench-read-64"];
const DIRECT_BATCH: u64 = 500;

/// Queues that are full, emptied as fast as can be.
pub async fn group(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(TUNED, Layout::Tuned).await?;
    lab.create(PLAIN, Layout::Pgmq).await?;
    // More than anybody can consume in a trial, warm-up included.
    let seconds = (pace.warm_up + pace.measure).as_secs_f64() + 0.2;
    let many = (seconds * 130_000.0) as u64;
    let some = (seconds * 12_000.0) as u64;
    let filled = (seconds * 50_000.0) as u64;
    let mut sides = vec![
        consume(lab, TUNED, false, many),
        consume(lab, PLAIN, false, many),
        unary(lab, some * 4),
        direct(many),
        rabbitmq_consume(lab, filled, 1),
    ];
    if !pace.quick {
        sides.extend([consume(lab, TUNED, true, many), rabbitmq_consume(lab, filled, 4)]);
    }
    let clients: &[usize] = if pace.quick { &[8, 16] } else { &[8, 16, 64] };
    sides.extend(clients.iter().map(|&clients| {
        let title = format!("pgbench read 1 + delete 1, {clients} clients");
        let work = Work::Pgbench(Pgbench::read_delete(PLAIN, clients));
        Side::new(&format!("pgbench-read-{clients}"), &title, work).on(PLAIN, some)
    }));
    let goal = Goal::AtLeast;
    let tuned = ["consume-tuned"];
    let how = "commands hold what workers have ready when the transport takes the next one; counted are verdicts DONE";
    let mut rows =
        vec![
            Row::new(
                "Consume and settle one by one, 64 workers, tuned queue / pgbench read 1 + delete 1",
                goal(20.0),
            )
            .of(&tuned, &PGBENCH, "pgbench")
            .noting(how),
            Row::new("the same / RabbitMQ quorum consume + ack (prefetch 500)", goal(1.05)).of(
                &tuned,
                &["rabbitmq-consume-1", "rabbitmq-consume-4"],
                "RabbitMQ",
            ),
            Row::new("the same on pgmq's own layout / pgbench read 1 + delete 1", goal(14.0)).of(
                &["consume-plain"],
                &PGBENCH,
                "pgbench",
            ),
            Row::new("the same, tuned / direct delete(array(read 500)) by one connection", goal(0.7)).of(
                &tuned,
                &["direct-500"],
                "pgbench",
            ),
            Row::new("unary ReadBatch 1 + Delete 1, 64 callers / pgbench the same", goal(4.0)).of(
                &["read-delete"],
                &PGBENCH,
                "pgbench",
            ),
            Row::new("server's CPU, Consume, tuned queue", Goal::Report)
                .measuring(Measure::ServerSeconds)
                .of(&tuned, &[], ""),
        ];
    if !pace.quick {
        let name = "the same, tuned, every worker awaiting its verdict / pgbench read 1 + delete 1";
        rows.push(Row::new(name, Goal::Report).of(&["consume-tuned-awaiting"], &PGBENCH, "pgbench"));
    }
    Ok(Group::new(sides, rows))
}

/// The same with longer bodies.
pub async fn sizes(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(TUNED, Layout::Tuned).await?;
    lab.create(PLAIN, Layout::Pgmq).await?;
    let seconds = (pace.warm_up + pace.measure).as_secs_f64() + 0.2;
    let (mut sides, mut rows) = (Vec::new(), Vec::new());
    // What is consumed at most in a second, here and from the broker.
    for (bytes, size, ours, brokers) in
        [(1_024, "1 KiB", 60_000.0, 20_000.0), (65_536, "64 KiB", 4_000.0, 8_000.0)]
    {
        let (filled, filled_there) = ((seconds * ours) as u64, (seconds * brokers) as u64);
        let longer = |side: Side| Side {
            id: format!("{}-{bytes}", side.id),
            title: format!("{}, {size}", side.title),
            ..side.with_bodies_of(bytes)
        };
        let work = Work::Pgbench(Pgbench::read_delete(PLAIN, 8));
        let direct = Side::new("pgbench-read-8", "pgbench read 1 + delete 1, 8 clients", work);
        let broker = rabbitmq_consume(lab, filled_there, 1);
        sides.push(longer(consume(lab, TUNED, false, filled)));
        sides.push(longer(direct.on(PLAIN, filled.min((seconds * 12_000.0) as u64))));
        sides.push(longer(broker));
        let ours = [format!("consume-tuned-{bytes}")];
        let row = |peer: &str| Row::new(&format!("Consume, 64 workers, {size} / {peer}"), Goal::Report);
        rows.push(row("pgbench read 1 + delete 1").of(
            &ours,
            &[format!("pgbench-read-8-{bytes}")],
            "pgbench",
        ));
        rows.push(row("RabbitMQ quorum consume + ack").of(
            &ours,
            &[format!("rabbitmq-consume-1-{bytes}")],
            "RabbitMQ",
        ));
    }
    Ok(Group { measure: Some(SIZES_MEASURE), ..Group::new(sides, rows) })
}

fn consume(lab: &Lab, queue: &str, awaits_verdict: bool, filled: u64) -> Side {
    let load = Load::Consume {
        server: lab.server.address.clone(),
        queue: queue.to_owned(),
        workers: 64,
        streams: 1,
        awaits_verdict,
        filled,
    };
    let (id, layout) =
        if queue == TUNED { ("consume-tuned", "tuned queue") } else { ("consume-plain", "pgmq's layout") };
    let (id, awaiting) =
        if awaits_verdict { (format!("{id}-awaiting"), ", verdicts awaited") } else { (id.to_owned(), "") };
    Side::new(&id, &format!("Consume, 64 workers on 1 stream, {layout}{awaiting}"), Work::Load(load))
        .on(queue, filled)
}

fn unary(lab: &Lab, filled: u64) -> Side {
    let server = lab.server.address.clone();
    let load = Load::ReadDelete { server, queue: TUNED.to_owned(), callers: 64, connections: 1 };
    Side::new("read-delete", "unary ReadBatch 1 + Delete 1, 64 callers", Work::Load(load)).on(TUNED, filled)
}

fn direct(filled: u64) -> Side {
    let work = Work::Pgbench(Pgbench::delete_read(TUNED, DIRECT_BATCH, filled));
    Side::new("direct-500", "pgbench delete(array(read 500)), 1 client, tuned queue", work).on(TUNED, filled)
}

fn rabbitmq_consume(lab: &Lab, filled: u64, connections: usize) -> Side {
    let work = rabbitmq(lab, |url| PeerLoad::RabbitmqConsume { url, filled, prefetch: 500, connections });
    let title =
        format!("RabbitMQ quorum queue, consume + ack, prefetch 500, 64 workers on {connections} channel(s)");
    Side::new(&format!("rabbitmq-consume-{connections}"), &title, work)
}

//! Sends of single messages and of batches.

use anyhow::Result;

use super::{Group, SHORT, SIZES_MEASURE, nats, rabbitmq};
use crate::lab::{Lab, Layout};
use crate::load::body;
use crate::peers::pgbench::Pgbench;
use crate::peers::python::Python;
use crate::report::{Goal, Measure, Row};
use crate::rounds::{Pace, Side, Work};
use crate::trial::{Load, PeerLoad};

const OURS: &str = "send_ours";
const PLAIN: &str = "send_plain";

const PGBENCH: [&str; 4] = ["pgbench-8", "pgbench-16", "pgbench-32", "pgbench-64"];
const PRODUCE: [&str; 2] = ["produce-1", "produce-4"];
const RABBITMQ: [&str; 2] = ["rabbitmq-1", "rabbitmq-4"];
const NATS: [&str; 2] = ["nats-1", "nats-4"];

/// Many callers, each awaiting the answer to its own message.
pub async fn single(lab: &Lab, pace: Pace) -> Result<Group> {
    create(lab).await?;
    let mut sides = vec![produce(lab, 4), send(lab, 1_024), send(lab, 64), send(lab, 8)];
    sides.extend([8, 16, 32].map(pgbench));
    sides.extend([rabbitmq_send(lab, 4), nats_send(lab, 4)]);
    if !pace.quick {
        sides.extend([produce(lab, 1), pgbench(64), rabbitmq_send(lab, 1), nats_send(lab, 1)]);
    }
    sides.push(nats_synced_send(lab));
    sides.extend([python("threads"), python("async"), pgmq_crate(lab), pgqrs(lab)]);
    let goal = Goal::AtLeast;
    let produced = |name: &str, wanted| Row::new(&format!("Produce, 1,024 callers / {name}"), wanted);
    let sent = |name: &str, wanted| Row::new(&format!("unary Send, 1,024 callers / {name}"), wanted);
    let unsynced =
        "NATS answers before anything is on the disk (it syncs every 2 minutes); the server syncs first";
    let rows = vec![
        produced("best pgbench pgmq.send", goal(12.0)).of(&PRODUCE, &PGBENCH, "pgbench"),
        produced("RabbitMQ quorum queue at its best", goal(3.0)).of(&PRODUCE, &RABBITMQ, "RabbitMQ"),
        produced("NATS JetStream without fsync at its best", goal(1.5))
            .of(&PRODUCE, &NATS, "NATS JetStream")
            .noting(unsynced),
        produced("NATS JetStream, sync_interval always", Goal::Report).of(
            &PRODUCE,
            &["nats-synced"],
            "NATS JetStream, synced",
        ),
        sent("best pgbench pgmq.send", goal(5.0)).of(&["send-1024"], &PGBENCH, "pgbench"),
        sent("RabbitMQ quorum queue at its best", goal(1.4)).of(&["send-1024"], &RABBITMQ, "RabbitMQ"),
        Row::new("unary Send, 64 callers / best pgbench pgmq.send", goal(2.2)).of(
            &["send-64"],
            &PGBENCH,
            "pgbench",
        ),
        Row::new("unary Send, 8 callers / pgbench pgmq.send, 8 clients", goal(1.0)).of(
            &["send-8"],
            &["pgbench-8"],
            "pgbench",
        ),
        sent("pgmq-py, 64 threads", goal(20.0)).of(&["send-1024"], &["pgmq-py-threads"], "pgmq-py"),
        sent("pgmq-py, async", goal(30.0)).of(&["send-1024"], &["pgmq-py-async"], "pgmq-py"),
        sent("pgmq crate", goal(4.0)).of(&["send-1024"], &["pgmq-crate"], "pgmq crate"),
        sent("pgqrs", goal(40.0)).of(&["send-1024"], &["pgqrs"], "pgqrs"),
        Row::new("server's CPU, Produce", Goal::Report).measuring(Measure::ServerSeconds).of(
            &PRODUCE,
            &[],
            "",
        ),
        Row::new("server's CPU, unary Send, 1,024 callers", Goal::Report)
            .measuring(Measure::ServerSeconds)
            .of(&["send-1024"], &[], ""),
    ];
    Ok(Group::new(sides, rows))
}

/// The same with longer bodies.
pub async fn sizes(lab: &Lab, _: Pace) -> Result<Group> {
    create(lab).await?;
    let (mut sides, mut rows) = (Vec::new(), Vec::new());
    // Of large calls more would wait for one queue than it lets wait for long.
    for (bytes, size, callers) in [(1_024, "1 KiB", 1_024), (65_536, "64 KiB", 32)] {
        let longer = |side: Side| Side {
            id: format!("{}-{bytes}", side.id),
            title: format!("{}, {size}", side.title),
            ..side.with_bodies_of(bytes)
        };
        let pgbench = [16, 32].map(|clients| pgbench_of(clients, bytes));
        sides.extend([longer(produce(lab, 4)), longer(send(lab, callers))]);
        sides.extend(pgbench.map(longer));
        sides.extend([longer(rabbitmq_send(lab, 4)), longer(nats_send(lab, 4))]);
        let id = |id: &str| format!("{id}-{bytes}");
        let best = [id("pgbench-16"), id("pgbench-32")];
        let unary = format!("send-{callers}");
        for (ours, name, callers) in
            [("produce-4", "Produce", 1_024), (unary.as_str(), "unary Send", callers)]
        {
            let row =
                |peer: &str| Row::new(&format!("{name}, {callers} callers, {size} / {peer}"), Goal::Report);
            let ours = [id(ours)];
            rows.push(row("best pgbench pgmq.send").of(&ours, &best, "pgbench"));
            rows.push(row("RabbitMQ quorum queue").of(&ours, &[id("rabbitmq-4")], "RabbitMQ"));
            rows.push(row("NATS JetStream without fsync").of(&ours, &[id("nats-4")], "NATS JetStream"));
        }
    }
    Ok(Group { measure: Some(SIZES_MEASURE), ..Group::new(sides, rows) })
}

/// One caller alone.
pub async fn lone(lab: &Lab, _: Pace) -> Result<Group> {
    create(lab).await?;
    let row = Row::new("lone caller's Send p50 / pgbench's", Goal::AtMost(1.4));
    let row = row.measuring(Measure::P50).of(&["send-1"], &["pgbench-1"], "pgbench");
    Ok(Group::new(vec![send(lab, 1), pgbench(1)], vec![row]))
}

/// `SendBatch` beside `pgmq.send_batch`.
pub async fn batches(lab: &Lab, _: Pace) -> Result<Group> {
    create(lab).await?;
    let server = lab.server.address.clone();
    let load = Load::SendBatch { server, queue: OURS.to_owned(), callers: 2, batch: 1_000 };
    let ours = Side::new("send-batch", "SendBatch of 1,000, 2 callers", Work::Load(load)).on(OURS, 0);
    let direct = Work::Pgbench(Pgbench::send_batch(PLAIN, &body(SHORT), 1_000, 2));
    let direct =
        Side::new("pgbench-batch", "pgbench pgmq.send_batch of 1,000, 2 clients", direct).on(PLAIN, 0);
    let row = Row::new("SendBatch of 1,000 / direct pgmq.send_batch of 1,000", Goal::AtLeast(0.9));
    let row = row.of(&["send-batch"], &["pgbench-batch"], "pgbench");
    Ok(Group::new(vec![ours, direct], vec![row]))
}

async fn create(lab: &Lab) -> Result<()> {
    lab.create(OURS, Layout::Tuned).await?;
    lab.create(PLAIN, Layout::Pgmq).await
}

fn produce(lab: &Lab, streams: usize) -> Side {
    let server = lab.server.address.clone();
    let load = Load::Produce { server, queue: OURS.to_owned(), callers: 1_024, streams };
    let title = format!("Produce, 1,024 callers on {streams} stream(s)");
    Side::new(&format!("produce-{streams}"), &title, Work::Load(load)).on(OURS, 0)
}

fn send(lab: &Lab, callers: usize) -> Side {
    let connections = callers.div_ceil(256).clamp(1, 4);
    let server = lab.server.address.clone();
    let load = Load::Send { server, queues: vec![OURS.to_owned()], callers, connections };
    let title = format!("unary Send, {callers} callers on {connections} connection(s)");
    Side::new(&format!("send-{callers}"), &title, Work::Load(load)).on(OURS, 0)
}

fn pgbench(clients: usize) -> Side {
    pgbench_of(clients, SHORT)
}

fn pgbench_of(clients: usize, bytes: usize) -> Side {
    let work = Work::Pgbench(Pgbench::send(PLAIN, &body(bytes), clients));
    Side::new(&format!("pgbench-{clients}"), &format!("pgbench pgmq.send, {clients} clients"), work)
        .on(PLAIN, 0)
}

fn rabbitmq_send(lab: &Lab, connections: usize) -> Side {
    let work = rabbitmq(lab, |url| PeerLoad::RabbitmqSend { url, callers: 1_024, connections });
    let title = format!("RabbitMQ quorum queue, 1,024 callers on {connections} channel(s)");
    Side::new(&format!("rabbitmq-{connections}"), &title, work)
}

fn nats_send(lab: &Lab, connections: usize) -> Side {
    let work = nats(&lab.brokers.nats, |url| PeerLoad::NatsSend { url, callers: 1_024, connections });
    let title = format!("NATS JetStream (no fsync), 1,024 callers on {connections} connection(s)");
    Side::new(&format!("nats-{connections}"), &title, work)
}

fn nats_synced_send(lab: &Lab) -> Side {
    let load = |url| PeerLoad::NatsSend { url, callers: 256, connections: 4 };
    let work = nats(&lab.brokers.nats_synced, load);
    Side::new("nats-synced", "NATS JetStream, sync_interval always, 256 callers on 4 connections", work)
}

fn python(kind: &'static str) -> Side {
    let work = Work::Python(Python { kind, queue: PLAIN.to_owned(), callers: 64 });
    let title = match kind {
        "async" => "pgmq-py, async, 64 tasks and connections".to_owned(),
        _ => format!("pgmq-py, 64 {kind} and connections"),
    };
    Side::new(&format!("pgmq-py-{kind}"), &title, work).on(PLAIN, 0)
}

fn pgmq_crate(lab: &Lab) -> Side {
    let (url, queue) = (lab.sql.url_of_sqlx(), PLAIN.to_owned());
    let load = PeerLoad::PgmqCrateSend { url, queue, callers: 64, connections: 16 };
    let title = "pgmq crate, 64 callers on 16 connections";
    Side::new("pgmq-crate", title, Work::Load(Load::Peer(load))).on(PLAIN, 0)
}

fn pgqrs(lab: &Lab) -> Side {
    let load = PeerLoad::PgqrsSend { url: lab.sql.url_of_sqlx(), callers: 64, connections: 16 };
    Side::new("pgqrs", "pgqrs, 64 producers on 16 connections", Work::Load(Load::Peer(load)))
}

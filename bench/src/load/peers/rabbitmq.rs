//! RabbitMQ with a quorum queue, persistent messages, publisher confirms, and one shared channel a connection.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::task::JoinSet;

use crate::load::body;
use crate::load::latency::{arrived, stamp, ticks};
use crate::load::meter::Meter;
use crate::trial::Order;

const QUEUE: &str = "bench";

/// Filling is not measured; so many publishers at once are fast enough.
const FILLERS: usize = 1_024;

/// Workers who share a consumer's deliveries and acknowledge one by one, as many as ours.
const WORKERS: usize = 64;

/// What a consumer holds at most while others publish.
const MIXED_PREFETCH: u16 = 500;

/// Callers that publish and await their own confirms, on so many connections.
pub async fn send(
    meter: &Arc<Meter>,
    order: &Order,
    url: &str,
    callers: usize,
    connections: usize,
) -> Result<()> {
    let channels = open(url, connections, true).await?;
    publishers(meter, &channels, body(order.body_bytes), callers);
    Ok(())
}

/// Consumers that acknowledge one by one, of a queue that was filled before.
pub async fn consume(
    meter: &Arc<Meter>,
    order: &Order,
    url: &str,
    filled: u64,
    prefetch: u16,
    connections: usize,
) -> Result<()> {
    let channels = open(url, connections, true).await?;
    fill(&channels, &body(order.body_bytes), filled).await?;
    for channel in channels {
        subscribe(meter, channel, prefetch, WORKERS.div_ceil(connections), None).await?;
    }
    meter.end_after(filled - filled / 20);
    Ok(())
}

/// Producers on one connection and consumers on another; a message counts when it was acknowledged.
pub async fn mixed(
    meter: &Arc<Meter>,
    order: &Order,
    url: &str,
    producers: usize,
    consumers: usize,
) -> Result<()> {
    let sending = open(url, 1, true).await?;
    let consuming = open(url, 1, false).await?;
    for channel in consuming {
        // One consumer whose deliveries the others share, as our workers share a stream.
        subscribe(meter, channel, MIXED_PREFETCH, consumers, None).await?;
    }
    let sent = Meter::new();
    publishers(&sent, &sending, body(order.body_bytes), producers);
    meter.depends_on(sent);
    Ok(())
}

/// A trickle to a consumer that waits.
pub async fn latency(meter: &Arc<Meter>, url: &str, per_second: u32) -> Result<()> {
    let epoch = Instant::now();
    let sending = open(url, 1, true).await?;
    let consuming = open(url, 1, false).await?;
    for channel in consuming {
        subscribe(meter, channel, 100, 8, Some(epoch)).await?;
    }
    let channel = sending.into_iter().next().context("no channel")?;
    let meter = Arc::clone(meter);
    tokio::spawn(async move {
        let mut ticks = ticks(per_second);
        loop {
            ticks.tick().await;
            let (channel, meter, text) = (channel.clone(), Arc::clone(&meter), stamp(epoch));
            tokio::spawn(async move {
                if let Err(error) = publish(&channel, text.as_bytes()).await {
                    meter.failed(format!("{error:#}"));
                }
            });
        }
    });
    Ok(())
}

/// One channel on each of so many connections; with `fresh` the queue is empty then.
async fn open(url: &str, connections: usize, fresh: bool) -> Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(connections);
    for _ in 0..connections {
        let connection =
            Connection::connect(url, ConnectionProperties::default()).await.context("RabbitMQ")?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channels.push(channel);
        // It closes when it is dropped.
        std::mem::forget(connection);
    }
    if fresh && let Some(channel) = channels.first() {
        channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments).await?;
    }
    Ok(channels)
}

fn publishers(meter: &Arc<Meter>, channels: &[Channel], text: String, callers: usize) {
    let text: Arc<[u8]> = text.into_bytes().into();
    for caller in 0..callers {
        let (channel, meter) = (channels[caller % channels.len()].clone(), Arc::clone(meter));
        let text = Arc::clone(&text);
        tokio::spawn(async move {
            let mut began = Instant::now();
            loop {
                match publish(&channel, &text).await {
                    Ok(()) => began = meter.done(caller, began, 1),
                    Err(error) => return meter.failed(format!("{error:#}")),
                }
            }
        });
    }
}

async fn publish(channel: &Channel, text: &[u8]) -> Result<()> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish("".into(), QUEUE.into(), options, text, properties).await?;
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("not confirmed: {other:?}"),
    }
}

async fn fill(channels: &[Channel], text: &str, messages: u64) -> Result<()> {
    let mut fillers = JoinSet::new();
    for filler in 0..FILLERS {
        let channel = channels[filler % channels.len()].clone();
        let text = text.to_owned();
        let share = messages / FILLERS as u64 + u64::from((filler as u64) < messages % FILLERS as u64);
        fillers.spawn(async move {
            for _ in 0..share {
                publish(&channel, text.as_bytes()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled??;
    }
    Ok(())
}

/// So many workers share what one consumer gets, and acknowledge each message; with an epoch what counts is when messages
/// arrive, else that they are acknowledged.
async fn subscribe(
    meter: &Arc<Meter>,
    channel: Channel,
    prefetch: u16,
    workers: usize,
    epoch: Option<Instant>,
) -> Result<()> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(QUEUE.into(), "".into(), options, FieldTable::default()).await?;
    let meter = Arc::clone(meter);
    tokio::spawn(async move {
        let settled = consumer.for_each_concurrent(workers, |delivery| async {
            let began = Instant::now();
            let settled = match delivery {
                Ok(delivery) => {
                    if let Some(epoch) = epoch {
                        arrived(&meter, epoch, &delivery.data);
                    }
                    delivery.ack(BasicAckOptions::default()).await
                }
                Err(error) => Err(error),
            };
            match settled {
                Ok(_) if epoch.is_none() => drop(meter.done(0, began, 1)),
                Ok(_) => {}
                Err(error) => meter.failed(error),
            }
        });
        settled.await;
        meter.failed("RabbitMQ ended the consumer");
    });
    Ok(())
}

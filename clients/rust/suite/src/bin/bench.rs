//! Prints the figures of the client: a lone send, sends at the same time, consuming and settling.

use std::error::Error;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use pgmq_grpc_client::{Client, Queue, Sent};
use serde_json::json;

const SPAN: Duration = Duration::from_secs(8);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let client = Client::connect(None)?;
    let queue = client.queue(format!("bench_rust_{}", std::process::id()));
    queue.create().await?;
    let outcome = figures(&queue).await;
    queue.drop().await?;
    outcome
}

async fn figures(queue: &Queue) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut times = Vec::new();
    for number in 0..1000 {
        let begun = Instant::now();
        queue.send(json!({ "order": number, "total": "12.50" })).await?;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("a lone send, p50: {:.2} ms", times[times.len() / 2].as_secs_f64() * 1e3);

    let producer = queue.producer();
    let order = || json!({ "order": 1, "total": "12.50" });
    let rate = sends_a_second(async || queue.send(order()).await).await?;
    println!("sends at 64 outstanding: {rate:.0} a second");
    let rate = sends_a_second(async || producer.send(order()).await).await?;
    println!("sends at 64 outstanding, by a producer: {rate:.0} a second");

    queue.purge().await?;
    let total = 100_000;
    for _ in 0..total / 1000 {
        queue.send_batch((0..1000).map(|number| json!({ "order": number, "total": "12.50" }))).await?;
    }
    let begun = Instant::now();
    let consumer = queue.consume().max_in_flight(1000).start();
    consumer
        .map(|message| async move { message?.delete().await })
        .buffer_unordered(500)
        .take(total)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    println!("consumed and settled: {:.0} a second", total as f64 / begun.elapsed().as_secs_f64());
    Ok(())
}

/// How often 64 senders, which each wait for their answer, come to send.
async fn sends_a_second(
    send: impl AsyncFn() -> Result<Sent, pgmq_grpc_client::Error>,
) -> Result<f64, pgmq_grpc_client::Error> {
    let begun = Instant::now();
    let senders = (0..64).map(async |_| {
        let mut sent = 0;
        while begun.elapsed() < SPAN {
            send().await?;
            sent += 1;
        }
        Ok::<u64, pgmq_grpc_client::Error>(sent)
    });
    let sent: u64 = try_join_all(senders).await?.into_iter().sum();
    Ok(sent as f64 / begun.elapsed().as_secs_f64())
}

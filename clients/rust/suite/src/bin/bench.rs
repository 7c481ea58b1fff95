//! Prints the figures of the client: sends through a producer, consuming and settling, and a lone send.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use pgmq_grpc_client::{Client, Queue};
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

    let sent = Arc::new(AtomicU64::new(0));
    let producer = queue.producer();
    let begun = Instant::now();
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (producer, sent) = (producer.clone(), sent.clone());
            tokio::spawn(async move {
                while begun.elapsed() < SPAN {
                    producer.send(json!({ "order": 1, "total": "12.50" })).await?;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), pgmq_grpc_client::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let rate = sent.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    println!("sends at 64 outstanding: {rate:.0} a second");

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

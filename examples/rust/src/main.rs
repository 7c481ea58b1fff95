//! Orders come in, are worked off with retries, archived, and replayed.
//!
//! The server is at `PGMQ_GRPC_TARGET`. `ORDERS_QUEUE` names the queue, and `EXAMPLE_ROLE` says what this process does:
//! `intake` sends orders, `worker` works them off until none has come for a while, and `all` (without it) does both, looks
//! what has become of them, and cleans up.

use std::env;
use std::error::Error;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pgmq_grpc_client::{Client, DeadLetterPolicy, ErrorReason, Message, Queue, QueuePolicy, RetryBackoff};
use serde::{Deserialize, Serialize};

const ORDERS: u32 = 20;
/// The order that no worker can do.
const POISON: u32 = 13;

#[derive(Deserialize, Serialize)]
struct Order {
    order: u32,
    total: Option<String>,
    language: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::builder().name("order worker in Rust").connect(None)?;
    let name = env::var("ORDERS_QUEUE").unwrap_or_else(|_| "orders".to_owned());
    let (orders, failed) = (client.queue(&name), client.queue(format!("{name}_failed")));
    create(&orders, &failed).await?;
    match env::var("EXAMPLE_ROLE").as_deref().unwrap_or("all") {
        "intake" => intake(&orders).await?,
        "worker" => work_off(&orders, Duration::from_secs(3)).await?,
        "all" => {
            intake(&orders).await?;
            work_off(&orders, Duration::ZERO).await?;
            let outcome = look(&orders, &failed).await;
            orders.drop().await?;
            failed.drop().await?;
            outcome?;
        }
        other => return Err(format!("there is no role {other:?}: all, intake or worker").into()),
    }
    Ok(())
}

/// Makes the queue, with a policy: three tries with growing pauses, then the dead-letter queue.
async fn create(orders: &Queue, failed: &Queue) -> Result<(), Box<dyn Error>> {
    failed.create().await?;
    let backoff = RetryBackoff::default()
        .with_minimum(Duration::from_millis(200))
        .with_maximum(Duration::from_secs(5))
        .with_multiplier(2.0);
    let policy = QueuePolicy::default()
        .with_dead_letter(DeadLetterPolicy { queue: failed.name().to_owned(), max_receives: 3 })
        .with_retry_backoff(backoff);
    match orders.create().policy(policy).await {
        // Somebody else has made it, with a policy of their own.
        Err(error) if error.is(ErrorReason::QueueKindMismatch) => Ok(()),
        made => Ok(made.map(|_| ())?),
    }
}

/// Sends the orders, all at once: such sends share a stream. Each has a deduplication id, so it is stored once, whatever
/// happens on the way.
async fn intake(orders: &Queue) -> Result<(), Box<dyn Error>> {
    let sends = (1..=ORDERS).map(async |order| {
        let total = (order != POISON).then(|| format!("{order}.50"));
        orders.send(&Order { order, total, language: "rust".to_owned() }).idempotent().await
    });
    let sent = try_join_all(sends).await?;
    println!("{} orders came in", sent.len());
    Ok(())
}

/// Works orders off, four at a time, until none was left for so long.
async fn work_off(orders: &Queue, quiet: Duration) -> Result<(), Box<dyn Error>> {
    let consumer = orders.consume().max_in_flight(8).start();
    let (stopper, watched) = (consumer.stopper(), orders.clone());
    tokio::spawn(async move {
        // A real worker goes on for ever, and stops at a signal.
        let mut busy = Instant::now();
        loop {
            if !watched.metrics().await.is_ok_and(|metrics| metrics.queue_length == 0) {
                busy = Instant::now();
            } else if busy.elapsed() >= quiet {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stopper.stop();
    });
    consumer.handle(work).concurrency(4).archive().await?;
    println!("no order is left");
    Ok(())
}

/// Success archives the order, and an error brings it back later.
async fn work(message: Message) -> Result<(), Box<dyn Error + Send + Sync>> {
    let order: Order = message.json()?;
    let Some(total) = order.total else {
        println!("order {} from {} has no total (try {})", order.order, order.language, message.read_ct);
        return Err("an order without a total".into());
    };
    println!("order {} from {}: {total}", order.order, order.language);
    Ok(())
}

/// Looks what has become of the orders, and replays those in the archive.
async fn look(orders: &Queue, failed: &Queue) -> Result<(), Box<dyn Error>> {
    let dead = failed.read().max_messages(10).wait(Duration::from_secs(10)).await?;
    let numbers: Vec<u32> = dead
        .iter()
        .map(|message| message.json::<Order>().map(|order| order.order))
        .collect::<Result<_, _>>()?;
    println!("given up: {numbers:?}");
    let archived = orders.list_archived_messages().await?.len();
    let replayed = orders.replay().await?.replayed_count;
    println!("archived: {archived}, replayed: {replayed}");
    work_off(orders, Duration::ZERO).await?;
    let again = orders.list_archived_messages().await?.len();
    let good = ORDERS as usize - 1;
    if numbers != [POISON] || archived != good || replayed != i64::from(ORDERS) - 1 || again != good {
        return Err(
            format!("{good} orders were to be archived, replayed and archived again ({again})").into()
        );
    }
    println!("all is as it should be");
    Ok(())
}

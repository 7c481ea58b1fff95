//! Counts what callers have done, and how long each time took, in an HDR histogram.

use std::fmt::Display;
use std::io::{Write, stdout};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use hdrhistogram::Histogram;
use tokio::time::{Instant as Deadline, sleep, sleep_until};

use crate::trial::{Order, Outcome, Processor, Quantiles};

/// Callers of different shards do not wait for each other.
const SHARDS: usize = 32;

/// The slowest operation that is told apart.
const LONGEST_US: u64 = 120_000_000;

/// How often is looked whether all there was has been done.
const GLANCE: Duration = Duration::from_millis(2);

/// Counts for all callers of a process.
pub struct Meter {
    measuring: AtomicBool,
    shards: Vec<Mutex<Shard>>,
    /// What was done since the start, warm-up included.
    total: AtomicU64,
    /// The trial ends when this much was done.
    enough: AtomicU64,
    failure: OnceLock<String>,
    /// Those whose failures are ours.
    others: Mutex<Vec<Arc<Meter>>>,
}

struct Shard {
    latency: Histogram<u64>,
    messages: u64,
}

impl Meter {
    /// A meter that counts nothing yet.
    pub fn new() -> Arc<Meter> {
        let shard = || {
            let latency = Histogram::new_with_bounds(1, LONGEST_US, 3).expect("bounds that fit");
            Mutex::new(Shard { latency, messages: 0 })
        };
        Arc::new(Meter {
            measuring: AtomicBool::new(false),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            total: AtomicU64::new(0),
            enough: AtomicU64::new(u64::MAX),
            failure: OnceLock::new(),
            others: Mutex::new(Vec::new()),
        })
    }

    /// Ends the trial early once so many messages are done, because there are no more.
    pub fn end_after(&self, messages: u64) {
        self.enough.store(messages, Ordering::Relaxed);
    }

    /// One operation of a caller is done, which moved so many messages. Returns when, for the next one.
    pub fn done(&self, caller: usize, began: Instant, messages: u64) -> Instant {
        let now = Instant::now();
        self.total.fetch_add(messages, Ordering::Relaxed);
        if self.measuring.load(Ordering::Relaxed) {
            let mut shard = self.shards[caller % SHARDS].lock().expect("a shard that nobody broke");
            let micros = u64::try_from((now - began).as_micros()).unwrap_or(LONGEST_US);
            shard.latency.saturating_record(micros.max(1));
            shard.messages += messages;
        }
        now
    }

    /// Operations that moved a message each are done, which began at these moments.
    pub fn all_done(&self, shard: usize, began: impl ExactSizeIterator<Item = Instant>) {
        let now = Instant::now();
        let messages = began.len() as u64;
        self.total.fetch_add(messages, Ordering::Relaxed);
        if self.is_measuring() {
            let mut shard = self.shards[shard % SHARDS].lock().expect("a shard that nobody broke");
            for began in began {
                let micros = u64::try_from((now - began).as_micros()).unwrap_or(LONGEST_US);
                shard.latency.saturating_record(micros.max(1));
            }
            shard.messages += messages;
        }
    }

    /// An operation failed, which makes the trial worthless.
    pub fn failed(&self, error: impl Display) {
        let _ = self.failure.set(error.to_string());
    }

    /// A failure that another meter was told makes this trial worthless too.
    pub fn depends_on(&self, other: Arc<Meter>) {
        self.others.lock().expect("the other meters").push(other);
    }

    /// Whether counting has begun and not ended.
    pub fn is_measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    /// Warms up, counts, and prints the outcome.
    pub async fn measure(&self, order: &Order) -> Result<()> {
        let outcome = self.outcome(order).await?;
        report(&outcome)
    }

    /// Warms up and counts.
    pub async fn outcome(&self, order: &Order) -> Result<Outcome> {
        sleep(Duration::from_millis(order.warm_up_ms)).await;
        self.check()?;
        let began = Instant::now();
        mark("BEGIN")?;
        self.measuring.store(true, Ordering::Relaxed);
        let until = Deadline::now() + Duration::from_millis(order.measure_ms);
        while Deadline::now() < until
            && self.total.load(Ordering::Relaxed) < self.enough.load(Ordering::Relaxed)
        {
            sleep_until(until.min(Deadline::now() + GLANCE)).await;
        }
        self.measuring.store(false, Ordering::Relaxed);
        let seconds = began.elapsed().as_secs_f64();
        mark("END")?;
        self.check()?;
        let mut all = Histogram::<u64>::new_with_bounds(1, LONGEST_US, 3)?;
        let mut messages = 0;
        for shard in &self.shards {
            let shard = shard.lock().map_err(|_| anyhow!("a caller panicked"))?;
            all.add(&shard.latency)?;
            messages += shard.messages;
        }
        if messages == 0 {
            bail!("nothing was done in {seconds:.1} s");
        }
        Ok(Outcome {
            messages,
            seconds,
            latency: Some(quantiles(&all)),
            processor: Processor::default(),
            figures: Default::default(),
        })
    }

    /// The first failure, if there is one.
    pub fn check(&self) -> Result<()> {
        if let Some(failure) = self.failure.get() {
            bail!("{failure}");
        }
        let others = self.others.lock().map_err(|_| anyhow!("a caller panicked"))?;
        others.iter().try_for_each(|other| other.check())
    }
}

/// Tells the parent process where the trial is.
pub fn mark(word: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{word}")?;
    Ok(out.flush()?)
}

/// Prints the outcome for the parent process.
pub fn report(outcome: &Outcome) -> Result<()> {
    mark(&serde_json::to_string(outcome)?)
}

/// The quantiles of a histogram of microseconds.
pub fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64;
    Quantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() as f64 }
}

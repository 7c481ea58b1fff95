//! The scenarios: which sides are compared, and what is wanted of the comparison.

mod conditions;
mod consumes;
mod policies;
mod sends;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::RunArguments;
use crate::lab::Lab;
use crate::peers::nats::Nats;
use crate::report::{self, Machine, Row, RowResult};
use crate::rounds::{self, Pace, Side, SideResult, Work};
use crate::trial::{Load, PeerLoad};

/// Sides that run interleaved, and the rows of the table that come of them.
pub struct Group {
    /// What is compared.
    pub sides: Vec<Side>,
    /// What the table says of it.
    pub rows: Vec<Row>,
    /// So long instead of what the pace says.
    pub measure: Option<Duration>,
    /// The same of the warm-up.
    pub warm_up: Option<Duration>,
    /// The same of the rounds.
    pub rounds: Option<usize>,
}

impl Group {
    /// A group at the general pace.
    pub fn new(sides: Vec<Side>, rows: Vec<Row>) -> Group {
        Group { sides, rows, measure: None, warm_up: None, rounds: None }
    }

    fn pace(&self, general: Pace) -> Pace {
        Pace {
            rounds: self.rounds.unwrap_or(general.rounds),
            measure: self.measure.unwrap_or(general.measure),
            warm_up: self.warm_up.unwrap_or(general.warm_up),
            ..general
        }
    }
}

/// The length of the short bodies, with which most is measured.
pub const SHORT: usize = 22;

/// How long trials with longer bodies count: there are many of them.
pub const SIZES_MEASURE: Duration = Duration::from_secs(2);

/// All groups, in the order in which they run.
const NAMES: [&str; 14] = [
    "sends",
    "lone sender",
    "batches",
    "consume",
    "latency",
    "mixed",
    "queues",
    "policies",
    "idle consumers",
    "browse",
    "backlog",
    "sizes",
    "consume sizes",
    "overload",
];

/// Those that the quick run leaves out.
const NOT_QUICK: [&str; 3] = ["backlog", "sizes", "consume sizes"];

/// Runs everything and reports.
pub async fn run(arguments: RunArguments) -> Result<()> {
    let began = Instant::now();
    check_words(&arguments.only)?;
    std::fs::create_dir_all(&arguments.output)?;
    let output = std::path::absolute(&arguments.output)?;
    let lab = Lab::open(&arguments.server, &output).await?;
    let measured = tokio::select! {
        measured = measure(&lab, &arguments, began) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let closed = lab.close().await;
    write(&output, measured?)?;
    closed
}

type Measured = (Vec<RowResult>, Vec<SideResult>, Machine);

fn write(output: &Path, (rows, sides, machine): Measured) -> Result<()> {
    report::write(output, &rows, &sides, &machine)
}

async fn measure(lab: &Lab, arguments: &RunArguments, began: Instant) -> Result<Measured> {
    let pace = pace(arguments);
    let (mut rows, mut sides) = (Vec::new(), Vec::new());
    for name in NAMES.iter().filter(|name| is_wanted(name, arguments)) {
        eprintln!("\n{name}");
        let group = group(name, lab, pace).await?;
        let results = rounds::run(lab, group.pace(pace), began, group.sides).await;
        rows.extend(group.rows.iter().map(|row| row.evaluate(&results)));
        sides.extend(results);
    }
    let machine = Machine::look(&lab.sql.version().await?, began.elapsed(), pace);
    Ok((rows, sides, machine))
}

fn is_wanted(name: &str, arguments: &RunArguments) -> bool {
    match arguments.only.is_empty() {
        true => !(arguments.quick && NOT_QUICK.contains(&name)),
        false => arguments.only.iter().any(|word| name.contains(word.as_str())),
    }
}

/// Refuses words that no group has in its name: nothing would be measured.
fn check_words(words: &[String]) -> Result<()> {
    match words.iter().find(|word| !NAMES.iter().any(|name| name.contains(word.as_str()))) {
        Some(unknown) => {
            anyhow::bail!("no scenarios are called {unknown:?}; there are: {}", NAMES.join(", "))
        }
        None => Ok(()),
    }
}

fn pace(arguments: &RunArguments) -> Pace {
    let (warm_up, measure) = if arguments.quick { (300, 1_000) } else { (700, 3_000) };
    Pace {
        rounds: arguments.rounds.unwrap_or(3).max(1),
        warm_up: Duration::from_millis(warm_up),
        measure: Duration::from_millis(arguments.measure_ms.unwrap_or(measure)),
        quick: arguments.quick,
    }
}

async fn group(name: &str, lab: &Lab, pace: Pace) -> Result<Group> {
    match name {
        "sends" => sends::single(lab, pace).await,
        "lone sender" => sends::lone(lab, pace).await,
        "batches" => sends::batches(lab, pace).await,
        "consume" => consumes::group(lab, pace).await,
        "latency" => conditions::latency(lab, pace).await,
        "mixed" => conditions::mixed(lab, pace).await,
        "queues" => conditions::queues(lab, pace).await,
        "policies" => policies::group(lab, pace).await,
        "idle consumers" => conditions::idle(lab, pace).await,
        "browse" => conditions::browse(lab, pace).await,
        "backlog" => conditions::backlog(lab, pace).await,
        "sizes" => sends::sizes(lab, pace).await,
        "consume sizes" => consumes::sizes(lab, pace).await,
        _ => conditions::overload(lab, pace).await,
    }
}

/// The work of a side that needs RabbitMQ.
fn rabbitmq(lab: &Lab, load: impl FnOnce(String) -> PeerLoad) -> Work {
    match &lab.brokers.rabbitmq {
        Ok(rabbitmq) => Work::Load(Load::Peer(load(rabbitmq.url.clone()))),
        Err(why) => Work::Missing(why.clone()),
    }
}

/// The work of a side that needs NATS.
fn nats(nats: &Result<Nats, String>, load: impl FnOnce(String) -> PeerLoad) -> Work {
    match nats {
        Ok(nats) => Work::Load(Load::Peer(load(nats.url.clone()))),
        Err(why) => Work::Missing(why.clone()),
    }
}

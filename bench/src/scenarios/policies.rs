//! What it costs to have policies: a queue with all of them beside one without any.

use anyhow::{Context, Result};

use super::Group;
use crate::lab::{Lab, Layout};
use crate::load::connect;
use crate::proto::queue_service_client::QueueServiceClient;
use crate::proto::{CreateQueueRequest, DeadLetterPolicy, Ordering, QueuePolicy, RetryBackoff};
use crate::report::{Goal, Row};
use crate::rounds::{Pace, Side, Work};
use crate::trial::Load;

const WITH: &str = "policies_all";
const WITHOUT: &str = "policies_none";
const DEAD: &str = "policies_dead";

/// The share of its speed that a queue keeps.
const KEPT: f64 = 0.95;

/// Sends and settles on both.
pub async fn group(lab: &Lab, pace: Pace) -> Result<Group> {
    lab.create(WITHOUT, Layout::Tuned).await?;
    lab.create(DEAD, Layout::Tuned).await?;
    create_with_policies(lab).await?;
    // More than anybody can consume in a trial, warm-up included.
    let filled = ((pace.warm_up + pace.measure).as_secs_f64().mul_add(130_000.0, 26_000.0)) as u64;
    let (mut sides, mut rows) = (Vec::new(), Vec::new());
    for work in [WorkOn::Produce, WorkOn::Send, WorkOn::Consume { filled }] {
        let (id, title) = work.names();
        let [with, without] = [(WITH, "all"), (WITHOUT, "no")].map(|(queue, which)| {
            let (id, title) = (format!("policies-{id}-{which}"), format!("{title}, {which} policies"));
            let load = Work::Load(work.load(lab, queue));
            sides.push(Side::new(&id, &title, load).on(queue, work.filled()));
            id
        });
        let row = Row::new(&format!("{title}: with all policies / with none"), Goal::AtLeast(KEPT));
        rows.push(row.of(&[with], &[without], "ourselves"));
    }
    Ok(Group::new(sides, rows))
}

/// What is done on a queue.
#[derive(Clone, Copy)]
enum WorkOn {
    Produce,
    Send,
    Consume { filled: u64 },
}

impl WorkOn {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            WorkOn::Produce => ("produce", "Produce, 1,024 callers"),
            WorkOn::Send => ("send", "unary Send, 1,024 callers"),
            WorkOn::Consume { .. } => ("consume", "Consume and settle one by one, 64 workers"),
        }
    }

    fn filled(self) -> u64 {
        match self {
            WorkOn::Produce | WorkOn::Send => 0,
            WorkOn::Consume { filled } => filled,
        }
    }

    fn load(self, lab: &Lab, queue: &str) -> Load {
        let (server, queue) = (lab.server.address.clone(), queue.to_owned());
        match self {
            WorkOn::Produce => Load::Produce { server, queue, callers: 1_024, streams: 4 },
            WorkOn::Send => Load::Send { server, queues: vec![queue], callers: 1_024, connections: 4 },
            WorkOn::Consume { filled } => {
                Load::Consume { server, queue, workers: 64, streams: 1, awaits_verdict: false, filled }
            }
        }
    }
}

/// Every field of a policy, with values under which the same messages are sent and read.
async fn create_with_policies(lab: &Lab) -> Result<()> {
    let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let policy = QueuePolicy {
        default_visibility_timeout: span(30),
        default_delay: span(0),
        default_wait: span(1),
        max_message_bytes: Some(65_536),
        dead_letter: Some(DeadLetterPolicy { queue: DEAD.to_owned(), max_receives: 5 }),
        retry_backoff: Some(RetryBackoff {
            minimum: span(1),
            maximum: span(60),
            multiplier: 2.0,
            jitter: 0.2,
        }),
        deduplication_window: span(300),
        default_ordering: Ordering::Unordered.into(),
        archive_retention: span(86_400),
    };
    let request =
        CreateQueueRequest { queue: WITH.to_owned(), policy: Some(policy), ..CreateQueueRequest::default() };
    let channel = connect(&lab.server.address, 1).await?.into_iter().next().context("no connection")?;
    QueueServiceClient::new(channel).create_queue(request).await.context("CreateQueue with policies")?;
    Ok(())
}

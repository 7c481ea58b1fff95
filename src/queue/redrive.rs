//! Messages out of a dead-letter queue, back to where they came from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stepwise::{self, Refused};
use super::{Broker, OnConnection, Operation};
use crate::domain::error::Applied;
use crate::domain::queue::MoveCounts;
use crate::domain::{Deadline, Error, Kind, QueueName, Result};
use crate::engine::Changes;
use crate::pg::{self, Connection, DeadLetterKey, FoundDeadLetters, RedriveStep, Subject};

/// The most messages that are looked for at once.
const FIND: usize = 20_000;

/// The most messages that one statement moves.
const STEP: usize = 1_000;

/// The longest pause after a statement.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Moves messages out of a dead-letter queue, in the order of their ids, in many small steps; each is a transaction of its
/// own. After each it rests for as long as the step took, so that others have at least half of the time. It ends well before
/// its deadline, and says whether it came to the end.
#[derive(Debug)]
pub struct RedriveMessages {
    /// The dead-letter queue.
    pub dead_letter_queue: QueueName,
    /// Only messages of these ids; any if there are none.
    pub msg_ids: Vec<i64>,
    /// Whereto; if none is named, each to the queue that it came from.
    pub target: Option<QueueName>,
    /// The most that it moves.
    pub max_messages: usize,
}

/// How many messages a call moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redriven {
    /// How many it moved.
    pub count: i64,
    /// More that can be moved may be there.
    pub more: bool,
}

impl Operation for RedriveMessages {
    const NAME: &'static str = "redrive_messages";
    type Output = Redriven;

    /// When the caller goes, it ends after the step that is under way.
    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Redriven> {
        broker.until(deadline, self.run(broker, deadline)).await
    }

    async fn run(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Redriven> {
        let mut redrive = Redrive {
            wanted: &self,
            broker,
            deadline,
            ends_early_by: deadline.remaining() / 4,
            pause: Duration::ZERO,
            moved: 0,
            passed_over: false,
            refused: Refused::default(),
            missing_queue: None,
        };
        let patience = Instant::now() + stepwise::PATIENCE;
        let ending = loop {
            let ending = match redrive.run().await {
                // What was moved is the answer. If the call is made again, it meets the failure first.
                Err(error) if redrive.moved > 0 && error.applied() == Applied::No => Ending::Early,
                ending => ending?,
            };
            if redrive.moved > 0 || !redrive.passed_over || ending == Ending::Early {
                break ending;
            }
            if patience <= Instant::now() {
                return Err(stepwise::held(&self.dead_letter_queue));
            }
            // In a moment it may be free, or gone.
            redrive.passed_over = false;
            redrive.pause = redrive.pause.max(stepwise::PAUSE);
        };
        let refused = redrive.refused.why();
        let more = redrive.passed_over || refused.is_some() || ending != Ending::AtTheEnd;
        if let Some(refused) = refused.filter(|_| redrive.moved == 0) {
            return Err(refused);
        }
        match (redrive.moved, ending, redrive.missing_queue.take()) {
            (0, Ending::Early, _) => Err(stepwise::ended_in_vain(broker)),
            (0, _, Some(missing)) => Err(came_from_nowhere(&missing)),
            (moved, ..) => Ok(Redriven { count: i64::try_from(moved).unwrap_or(i64::MAX), more }),
        }
    }
}

/// Why a redrive has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// No further message can be moved.
    AtTheEnd,
    /// It has moved as many as it may, and more are there.
    Full,
    /// There was no time for the rest.
    Early,
}

struct Redrive<'a> {
    wanted: &'a RedriveMessages,
    broker: &'a Arc<Broker>,
    deadline: Deadline,
    /// The time that is left for the last step, which cannot be broken off.
    ends_early_by: Duration,
    /// How long it rests before the next step.
    pause: Duration,
    moved: usize,
    /// Some were found and not moved: they are gone, read, or locked by somebody.
    passed_over: bool,
    /// What the database refuses to have moved.
    refused: Refused,
    /// The first queue that messages came from and that is not there.
    missing_queue: Option<String>,
}

impl Redrive<'_> {
    async fn run(&mut self) -> Result<Ending> {
        let mut after = i64::MIN;
        loop {
            let room = self.wanted.max_messages - self.moved;
            // One more than may be moved tells whether more are there.
            let find = FindDeadLetters {
                dead_letter_queue: self.wanted.dead_letter_queue.clone(),
                msg_ids: self.wanted.msg_ids.clone(),
                target: self.wanted.target.clone(),
                after,
                count: FIND.min(room + 1),
            };
            let Some(found) = self.step(find).await? else {
                return Ok(Ending::Early);
            };
            self.missing_queue = self.missing_queue.take().or(found.missing_queue);
            let is_full = found.messages.len() > room;
            let wanted: Vec<_> = found.messages.into_iter().take(room).collect();
            let last = wanted.last().map(|((msg_id, _), _)| *msg_id);
            for (target, keys) in by_target(wanted) {
                if !self.move_all(&target, &keys).await? {
                    return Ok(Ending::Early);
                }
            }
            match if is_full { last } else { found.next_after } {
                _ if is_full && self.moved >= self.wanted.max_messages => return Ok(Ending::Full),
                None => return Ok(Ending::AtTheEnd),
                Some(next) => after = next,
            }
        }
    }

    /// Moves messages to one queue, and says whether there was time for it. Where the database refuses to have one moved, parts
    /// of its step are tried by themselves, in their order.
    async fn move_all(&mut self, target: &QueueName, keys: &[DeadLetterKey]) -> Result<bool> {
        // The part to be moved next is the last.
        let mut parts = vec![keys];
        while let Some(part) = parts.pop() {
            let (now, later) = part.split_at(part.len().min(STEP));
            if now.is_empty() {
                continue;
            }
            let step = MoveDeadLetters {
                dead_letter_queue: self.wanted.dead_letter_queue.clone(),
                target: target.clone(),
                keys: now.to_vec(),
                repeatable: !self.wanted.msg_ids.is_empty(),
            };
            let done = match self.step(step).await {
                Err(error) if pg::is_of_a_row(&error) => {
                    parts.extend(self.refused.split(now, later, error, self.moved > 0)?);
                    continue;
                }
                done => done?,
            };
            let Some(done) = done else {
                return Ok(false);
            };
            let Some(done) = done else {
                if self.wanted.target.is_some() {
                    return Err(Error::queue_not_found(target.as_str()));
                }
                self.missing_queue.get_or_insert_with(|| target.to_string());
                return Ok(true);
            };
            self.moved += done.moved.len();
            self.refused.note_swallowed(&done.refused);
            self.passed_over |= done.moved.len() + done.refused.len() < done.tried;
            parts.push(&part[done.tried..]);
        }
        Ok(true)
    }

    /// Does one thing after a rest, if there is time for it.
    async fn step<T: OnConnection>(&mut self, step: T) -> Result<Option<T::Output>> {
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {}
            () = self.broker.drain.cancelled() => {}
        }
        if self.has_to_end() {
            return Ok(None);
        }
        let began = Instant::now();
        let done = self.broker.run_while_draining(step, self.deadline).await?;
        self.pause = began.elapsed().min(LONGEST_PAUSE);
        Ok(Some(done))
    }

    fn has_to_end(&self) -> bool {
        self.deadline.remaining() <= self.ends_early_by || self.broker.drain.is_cancelled()
    }
}

fn came_from_nowhere(queue: &str) -> Error {
    let message =
        format!("messages came from queue {queue:?}, which does not exist; target_queue names another");
    Error::queue_not_found(queue).reworded(Kind::QueueNotFound, message)
}

/// Each queue's messages in their order.
fn by_target(messages: Vec<(DeadLetterKey, QueueName)>) -> BTreeMap<QueueName, Vec<DeadLetterKey>> {
    let mut targets: BTreeMap<QueueName, Vec<DeadLetterKey>> = BTreeMap::new();
    for (key, target) in messages {
        targets.entry(target).or_default().push(key);
    }
    targets
}

/// Finds messages of a dead-letter queue that can be moved.
struct FindDeadLetters {
    dead_letter_queue: QueueName,
    msg_ids: Vec<i64>,
    /// Where they are to go; it has to be there even if none is found.
    target: Option<QueueName>,
    after: i64,
    count: usize,
}

impl OnConnection for FindDeadLetters {
    const NAME: &'static str = "find_dead_letters";
    type Output = FoundDeadLetters;

    fn subject(&self) -> Subject<'_> {
        self.dead_letter_queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<FoundDeadLetters> {
        if let Some(target) = &self.target {
            connection.require_queue(target).await?;
        }
        let msg_ids = Some(self.msg_ids.as_slice()).filter(|msg_ids| !msg_ids.is_empty());
        connection
            .find_dead_letters(&self.dead_letter_queue, self.target.as_ref(), msg_ids, self.after, self.count)
            .await
    }
}

/// Moves some messages to one queue in one transaction; gives none if that queue is missing.
struct MoveDeadLetters {
    dead_letter_queue: QueueName,
    target: QueueName,
    keys: Vec<DeadLetterKey>,
    /// The caller has named the messages, so that another try moves no others.
    repeatable: bool,
}

impl OnConnection for MoveDeadLetters {
    const NAME: &'static str = "redrive_messages";
    type Output = Option<RedriveStep>;

    fn subject(&self) -> Subject<'_> {
        self.dead_letter_queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Option<RedriveStep>> {
        connection.redrive(&self.dead_letter_queue, &self.target, &self.keys, self.repeatable).await
    }

    fn tell(&self, done: &Option<RedriveStep>, changes: &mut Changes) {
        let Some(done) = done.as_ref().filter(|done| !done.moved.is_empty()) else {
            return;
        };
        // Behind them, others of their groups may go on.
        changes.settled(&self.dead_letter_queue, done.moved.iter().copied());
        changes.arrived(&self.target);
        let redriven = u64::try_from(done.moved.len()).unwrap_or(u64::MAX);
        changes.moved(&self.target, MoveCounts { redriven, ..MoveCounts::default() });
    }

    fn undone(&self, changes: &mut Changes) {
        changes.read(&self.dead_letter_queue);
    }
}

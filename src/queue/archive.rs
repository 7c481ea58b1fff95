//! Looks into queues and archives, and messages taken out of archives.

use std::sync::Arc;
use std::time::Instant;

use super::stepwise::{self, Refused};
use super::{Broker, OnConnection, Operation};
use crate::domain::error::Applied;
use crate::domain::page::{Page, Paged};
use crate::domain::queue::MoveCounts;
use crate::domain::{
    ArchiveFilter, Deadline, ListedMessage, MessageState, QueueName, Result, TakenFromArchive,
};
use crate::engine::Changes;
use crate::pg::{self, ArchivedKey, Connection, Subject, TakenStep};

/// The most messages that are looked for at once.
const FIND: usize = 10_000;

/// The most messages that one statement takes.
const TAKE: usize = 1_000;

/// A page of a queue's messages; nothing is read.
#[derive(Debug)]
pub struct ListMessages {
    /// The queue.
    pub queue: QueueName,
    /// In which state; any if there is none.
    pub state: Option<MessageState>,
    /// Of which ids; any if there are none.
    pub msg_ids: Vec<i64>,
    /// Which page.
    pub page: Page,
}

impl OnConnection for ListMessages {
    const NAME: &'static str = "list_messages";
    type Output = Paged<ListedMessage>;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        let msg_ids = Some(self.msg_ids.as_slice()).filter(|msg_ids| !msg_ids.is_empty());
        connection.list_messages(&self.queue, self.state, msg_ids, &self.page).await
    }
}

/// A page of the messages of an archive.
#[derive(Debug)]
pub struct ListArchivedMessages {
    /// The queue.
    pub queue: QueueName,
    /// Which messages.
    pub filter: ArchiveFilter,
    /// Which page.
    pub page: Page,
}

impl OnConnection for ListArchivedMessages {
    const NAME: &'static str = "list_archived_messages";
    type Output = Paged<ListedMessage>;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        connection.list_archived(&self.queue, &self.filter, &self.page).await
    }
}

/// Takes messages out of an archive by their ids' order, in many small steps; each is a transaction of its own. It ends
/// well before its deadline, and says whether it came to the end.
#[derive(Debug)]
pub struct TakeArchived {
    /// The queue.
    pub queue: QueueName,
    /// Which messages.
    pub filter: ArchiveFilter,
    /// What becomes of them.
    pub fate: Fate,
    /// The most that it takes.
    pub max_messages: usize,
}

/// What becomes of messages that are taken out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// They are deleted.
    Deleted,
    /// They become new messages of a queue.
    SentTo(QueueName),
}

impl Operation for TakeArchived {
    const NAME: &'static str = "take_archived";
    type Output = TakenFromArchive;

    /// When the caller goes, it ends after the step that is under way.
    async fn call(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<TakenFromArchive> {
        broker.until(deadline, self.run(broker, deadline)).await
    }

    async fn run(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<TakenFromArchive> {
        let mut taking = Taking {
            broker,
            deadline,
            ends_early_by: deadline.remaining() / 4,
            taken: 0,
            passed_over: false,
            refused: Refused::default(),
        };
        let patience = Instant::now() + stepwise::PATIENCE;
        let came_to_the_end = loop {
            let came_to_the_end = match taking.take(&self).await {
                // What was taken is the answer. If the call is made again, it meets the failure first.
                Err(error) if taking.taken > 0 && error.applied() == Applied::No => false,
                done => done?,
            };
            match (taking.taken, came_to_the_end) {
                (0, false) => {
                    let refused = taking.refused.why();
                    return Err(refused.unwrap_or_else(|| stepwise::ended_in_vain(broker)));
                }
                (0, true) if taking.passed_over && patience <= Instant::now() => {
                    return Err(stepwise::held(&self.queue));
                }
                (0, true) if taking.passed_over => {
                    // In a moment it may be free, or gone.
                    taking.passed_over = false;
                    tokio::time::sleep(stepwise::PAUSE).await;
                }
                _ => break came_to_the_end,
            }
        };
        let count = i64::try_from(taking.taken).unwrap_or(i64::MAX);
        match taking.refused.why() {
            Some(refused) if count == 0 => Err(refused),
            refused => {
                let more = taking.passed_over || refused.is_some() || !came_to_the_end;
                Ok(TakenFromArchive { count, more })
            }
        }
    }
}

struct Taking<'a> {
    broker: &'a Arc<Broker>,
    deadline: Deadline,
    /// The time that is left for the last step, which cannot be broken off.
    ends_early_by: std::time::Duration,
    taken: usize,
    /// Some were found and not taken: they are gone, or locked by somebody.
    passed_over: bool,
    /// What the database refuses to have taken.
    refused: Refused,
}

impl Taking<'_> {
    /// Takes what it may, and says whether that was all.
    async fn take(&mut self, wanted: &TakeArchived) -> Result<bool> {
        let mut after = i64::MIN;
        loop {
            let (queue, filter) = (wanted.queue.clone(), wanted.filter.clone());
            let target = match &wanted.fate {
                Fate::SentTo(target) => Some(target.clone()),
                Fate::Deleted => None,
            };
            let room = wanted.max_messages.saturating_sub(self.taken);
            let find = FindArchived { queue, target, filter, after, count: FIND.min(room) };
            let (found, next_after) = self.broker.run_while_draining(find, self.deadline).await?;
            if !self.take_found(wanted, &found).await? {
                return Ok(false);
            }
            match next_after {
                None => return Ok(true),
                Some(_) if self.taken >= wanted.max_messages || self.has_to_end() => return Ok(false),
                Some(next) => after = next,
            }
        }
    }

    /// Takes what was found, and says whether there was time and room for all of it: it may be more than was asked for, because
    /// all with the id of the last are found. Where the database refuses to have one taken, parts of its step are tried by
    /// themselves, in their order.
    async fn take_found(&mut self, wanted: &TakeArchived, found: &[ArchivedKey]) -> Result<bool> {
        // The part to be taken next is the last.
        let mut parts = vec![found];
        while let Some(part) = parts.pop() {
            // Two may have one key.
            let room = wanted.max_messages.saturating_sub(self.taken);
            let (now, later) = part.split_at(part.len().min(TAKE).min(room));
            if part.is_empty() {
                continue;
            }
            if room == 0 || self.has_to_end() {
                return Ok(false);
            }
            let step = TakeStep {
                queue: wanted.queue.clone(),
                fate: wanted.fate.clone(),
                keys: now.to_vec(),
                named: wanted.filter.msg_ids().is_some(),
            };
            match self.broker.run_while_draining(step, self.deadline).await {
                Err(error) if pg::is_of_a_row(&error) => {
                    parts.extend(self.refused.split(now, later, error, self.taken > 0)?);
                }
                done => {
                    let done = done?;
                    self.taken += done.count;
                    self.refused.note_swallowed(&done.refused);
                    self.passed_over |= done.count + done.refused.len() < done.tried;
                    parts.push(&part[done.tried..]);
                }
            }
        }
        Ok(true)
    }

    fn has_to_end(&self) -> bool {
        self.deadline.remaining() <= self.ends_early_by || self.broker.drain.is_cancelled()
    }
}

/// Finds messages of an archive that are to be taken, and where the search goes on.
struct FindArchived {
    queue: QueueName,
    /// Where they are to go; it has to be there even if none is found.
    target: Option<QueueName>,
    filter: ArchiveFilter,
    after: i64,
    count: usize,
}

impl OnConnection for FindArchived {
    const NAME: &'static str = "find_archived";
    type Output = (Vec<ArchivedKey>, Option<i64>);

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<Self::Output> {
        if let Some(target) = &self.target {
            connection.require_queue(target).await?;
        }
        let found = connection.find_archived(&self.queue, &self.filter, self.after, self.count).await?;
        let keys =
            found.messages.iter().filter_map(|listed| Some((listed.message.msg_id, listed.archived_at?)));
        Ok((keys.collect(), found.next_after))
    }
}

/// Takes some messages out of an archive in one transaction.
struct TakeStep {
    queue: QueueName,
    fate: Fate,
    keys: Vec<ArchivedKey>,
    /// The caller has named the messages by their ids, so that another try takes no others.
    named: bool,
}

impl OnConnection for TakeStep {
    const NAME: &'static str = "take_archived";
    type Output = TakenStep;

    fn subject(&self) -> Subject<'_> {
        self.queue.as_str().into()
    }

    async fn apply(&self, connection: &mut Connection) -> Result<TakenStep> {
        match &self.fate {
            Fate::Deleted => connection.delete_archived(&self.queue, &self.keys, self.named).await,
            Fate::SentTo(target) => {
                connection.replay_archived(&self.queue, target, &self.keys, self.named).await
            }
        }
    }

    fn tell(&self, taken: &TakenStep, changes: &mut Changes) {
        if let Fate::SentTo(target) = &self.fate
            && taken.count > 0
        {
            changes.arrived(target);
            let replayed = u64::try_from(taken.count).unwrap_or(u64::MAX);
            changes.moved(target, MoveCounts { replayed, ..MoveCounts::default() });
        }
    }
}

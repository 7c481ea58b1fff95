//! Messages into several queues, in one transaction and one round trip: one commit is written to disk for all of them.

use std::time::{Duration, Instant};

use futures_util::future::{Either, Ready, poll_immediate, ready};
use tokio_postgres::{Client, Row, Statement as Prepared};

use super::catalog::QueueTable;
use super::database::{Connection, Parameter, SILENCE, ask};
use super::error;
use super::send::{Columns, Fields, SEND, SEND_ONE, id_of_one, ids_of_many};
use super::statement::{Effect, Statement, TimeLimit};
use crate::domain::{Error, OutgoingMessage, QueueName, Result};

/// So many messages of a queue go in inserts of their own, which a session that serves many queues has prepared.
const FEW: usize = 8;

/// An insert that took so long has held up the other queues.
const SLOW: Duration = Duration::from_millis(20);

/// How long an insert may keep the other queues waiting.
#[derive(Debug, Clone, Copy)]
pub struct GroupPatience {
    /// For a lock.
    pub lock: Duration,
    /// In all.
    pub time: Duration,
}

/// One queue's messages.
pub struct GroupPart<'a> {
    /// The queue. No two parts have the same one.
    pub queue: &'a QueueName,
    /// Its messages, in order; at least one.
    pub messages: Vec<&'a OutgoingMessage>,
}

/// What became of a group that was stored.
#[derive(Debug)]
pub struct StoredGroup {
    /// The ids of each part's messages, in order. An error is that of a message that was not stored.
    pub parts: Vec<Vec<Result<i64>>>,
    /// The parts whose inserts have held up the others.
    pub slow: Vec<usize>,
}

/// Why a group failed.
#[derive(Debug)]
pub struct GroupFailure {
    /// What is to be told. Unless its outcome is unknown, nothing of any part was applied.
    pub error: Error,
    /// The part whose insert has failed, if it was one's.
    pub culprit: Option<usize>,
}

/// An insert of one part's messages, or of one of them.
struct Insert<'a> {
    part: usize,
    statement: Statement,
    input: Input<'a>,
    prepared: Option<Prepared>,
}

enum Input<'a> {
    One(Fields<'a>),
    Many(Columns<'a>, usize),
}

impl Insert<'_> {
    fn parameters(&self) -> [Parameter<'_>; 4] {
        match &self.input {
            Input::One(fields) => fields.parameters(),
            Input::Many(columns, _) => columns.parameters(),
        }
    }

    /// The id of each message, or why it was not stored.
    fn msg_ids(&self, rows: &[Row]) -> Vec<Result<i64>> {
        match self.input {
            Input::One(_) => vec![id_of_one(rows)],
            Input::Many(_, count) => match ids_of_many(rows, count) {
                Ok(msg_ids) => msg_ids.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error); count],
            },
        }
    }
}

impl Connection {
    /// Stores the messages of several queues, all or none, and gives their ids (`pgmq.send`, `pgmq.send_batch`). As
    /// [`Connection::send`] it looks at no deduplication id. A part whose queue is missing is no failure:
    /// its messages have the error. Each insert has so much time.
    ///
    /// # Errors
    /// The error of the insert that has failed, such as `QueueBusy`, or of the commit; `OutcomeUnknown` if the connection was
    /// lost meanwhile.
    pub async fn send_group(
        &mut self,
        parts: &[GroupPart<'_>],
        patience: GroupPatience,
    ) -> Result<StoredGroup, GroupFailure> {
        let of_all = |error| GroupFailure { error, culprit: None };
        let mut stored: Vec<Vec<Result<i64>>> = parts.iter().map(|_| Vec::new()).collect();
        let mut inserts = Vec::with_capacity(parts.len());
        for (place, part) in parts.iter().enumerate() {
            match self.table(part.queue).await {
                Ok(table) => inserts.extend(inserts_of(place, part, &table)),
                Err(error) => {
                    self.check_usable().map_err(of_all)?;
                    stored[place] = vec![Err(error); part.messages.len()];
                }
            }
        }
        let round_trip = self.begin_group(patience).await.map_err(of_all)?;
        // Within the transaction, because it locks the table, and waits for that no longer than an insert.
        for insert in &mut inserts {
            match self.prepare(&insert.statement, &insert.parameters()).await {
                Ok(prepared) => insert.prepared = prepared,
                Err(error) => {
                    let error = self.missing(parts[insert.part].queue, error);
                    let culprit = Some(insert.part).filter(|_| !self.session.busy);
                    if culprit.is_some() {
                        self.roll_back().await;
                    }
                    return Err(GroupFailure { error, culprit });
                }
            }
        }
        let (unreplicated, started) = (self.session.link.unreplicated(), Instant::now());
        self.session.busy = true;
        let asked = ask_all(&self.session.client, &inserts, self.session.statement_timeout_ms);
        let Ok(answers) = tokio::time::timeout(SILENCE, asked).await else {
            // The session stays busy, which throws it away.
            return Err(of_all(error::connection_lost(Effect::Writes)));
        };
        tracing::trace!(
            statement = "send_group",
            run_us = started.elapsed().as_micros(),
            inserts = inserts.len(),
            "statement done"
        );
        let mut failure = None;
        for (insert, rows) in inserts.iter().zip(answers.inserts) {
            match rows {
                Ok(rows) => stored[insert.part].extend(insert.msg_ids(&rows)),
                // The database may have stored it, and what came behind it.
                Err(failed) if failed.as_db_error().is_none() => {
                    return Err(of_all(error::connection_lost(Effect::Writes).caused_by(failed)));
                }
                // Those behind it fail because it did.
                Err(failed) => {
                    self.session.prepared.forget(&insert.statement.text);
                    // Unless the session has ended, the transaction is known to be taken back.
                    let effect = if error::ends_session(&failed) { Effect::Writes } else { Effect::Reads };
                    let given =
                        self.answered(Err::<(), _>(failed), effect, unreplicated, error::of_statement);
                    let queue = parts[insert.part].queue;
                    failure = given.err().map(|error| (self.missing(queue, error), insert.part));
                    break;
                }
            }
        }
        if let (Some((error, culprit)), true) = (&failure, self.session.busy) {
            return Err(GroupFailure { error: error.clone(), culprit: Some(*culprit) });
        }
        // After a failed insert it was a rollback.
        let committed = self.answered(answers.committed, Effect::Writes, unreplicated, error::of_commit);
        self.session.in_transaction = false;
        match (failure, committed) {
            (Some((error, culprit)), _) => Err(GroupFailure { error, culprit: Some(culprit) }),
            (None, Err(error)) => Err(of_all(error)),
            (None, Ok(())) => {
                let parts_of = inserts.iter().map(|insert| insert.part);
                let slow = slow(parts_of.zip(answers.waits), round_trip);
                Ok(StoredGroup { parts: stored, slow })
            }
        }
    }

    async fn prepare(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Prepared>> {
        self.check_usable()?;
        let unreplicated = self.session.link.unreplicated();
        let session = &mut *self.session;
        session.busy = true;
        let found = session.prepared.statement(&session.client, &statement.text, parameters);
        let Ok(found) = tokio::time::timeout(SILENCE, found).await else {
            return Err(error::connection_lost(Effect::Reads));
        };
        self.answered(found, Effect::Reads, unreplicated, error::of_statement)
    }

    /// Begins the transaction, and waits for it: without one, each insert would be committed by itself. Gives how long that
    /// took, most of it the way to the database and back.
    async fn begin_group(&mut self, patience: GroupPatience) -> Result<Duration> {
        // By itself: within the transaction, a rollback would take it back.
        if let Some(timeout_ms) = self.new_statement_timeout_ms(TimeLimit::Deadline) {
            self.batch(&format!("SET statement_timeout = {timeout_ms}")).await?;
            self.session.statement_timeout_ms = timeout_ms;
        }
        // What is to be refused is refused at its own insert, and not at the commit, where nobody knows whose it was.
        let begin = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; SET CONSTRAINTS ALL IMMEDIATE",
            patience.lock.as_millis(),
            patience.time.as_millis()
        );
        let asked = Instant::now();
        let begun = self.batch(&begin).await;
        match &begun {
            Ok(()) => self.session.in_transaction = true,
            Err(_) if !self.session.busy => self.roll_back().await,
            Err(_) => {}
        }
        begun.map(|()| asked.elapsed())
    }
}

/// The parts that have held up the others, by how long the answer to each insert was waited for. The first comes after the
/// way to the database and back; the others are behind it.
fn slow(waits: impl Iterator<Item = (usize, Duration)>, round_trip: Duration) -> Vec<usize> {
    let on_the_way = std::iter::once(round_trip).chain(std::iter::repeat(Duration::ZERO));
    let slow = waits.zip(on_the_way).filter(|((_, waited), on_the_way)| *waited > SLOW + *on_the_way);
    slow.map(|((part, _), _)| part).collect()
}

/// The inserts of a part.
fn inserts_of<'a>(place: usize, part: &'a GroupPart<'_>, table: &QueueTable) -> Vec<Insert<'a>> {
    let insert = |statement, input| Insert { part: place, statement, input, prepared: None };
    if part.messages.len() > FEW {
        let input = Input::Many(Columns::of(&part.messages), part.messages.len());
        return vec![insert(SEND.on(table), input)];
    }
    let one = SEND_ONE.on(table);
    part.messages.iter().map(|message| insert(one.clone(), Input::One(Fields::of(message)))).collect()
}

/// What the database answered to inserts and their commit.
struct Answers {
    inserts: Vec<Result<Vec<Row>, tokio_postgres::Error>>,
    committed: Result<(), tokio_postgres::Error>,
    /// How long each insert's was waited for.
    waits: Vec<Duration>,
}

/// Sends the inserts and the commit in one go, and waits for all answers.
async fn ask_all(client: &Client, inserts: &[Insert<'_>], commit_timeout_ms: u32) -> Answers {
    let parameters: Vec<[Parameter<'_>; 4]> = inserts.iter().map(Insert::parameters).collect();
    let mut asked = Vec::with_capacity(inserts.len());
    for (insert, parameters) in inserts.iter().zip(&parameters) {
        asked
            .push(sent(Box::pin(ask(client, &insert.statement, insert.prepared.as_ref(), parameters))).await);
    }
    // The commit may wait for longer: for others' notifications, the disk and a standby, as every commit does. After a
    // failure this fails, too.
    let usual_patience =
        format!("SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = {commit_timeout_ms}");
    let patient = sent(Box::pin(client.batch_execute(&usual_patience))).await;
    let commit = sent(Box::pin(client.batch_execute("COMMIT"))).await;
    let count = asked.len();
    let mut answers =
        Answers { inserts: Vec::with_capacity(count), committed: Ok(()), waits: Vec::with_capacity(count) };
    for asked in asked {
        let began = Instant::now();
        answers.inserts.push(asked.await);
        answers.waits.push(began.elapsed());
    }
    // A transaction that failed here was taken back, although its commit reports no error.
    let patient = patient.await;
    answers.committed = commit.await.and(patient);
    answers
}

/// A request that has been sent, which its first poll does.
async fn sent<F: Future + Unpin>(mut request: F) -> Either<Ready<F::Output>, F> {
    match poll_immediate(&mut request).await {
        Some(answer) => Either::Left(ready(answer)),
        None => Either::Right(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_not_blamed_for_the_way_to_the_database() {
        let far = SLOW * 10;
        let slow_ones = |waits: &[Duration]| slow(waits.iter().copied().enumerate(), far);
        assert!(slow_ones(&[far + SLOW / 2, SLOW / 2, SLOW]).is_empty());
        assert_eq!(slow_ones(&[far + SLOW * 2, SLOW / 2]), [0]);
        // What is behind the first has no way of its own.
        assert_eq!(slow_ones(&[far, SLOW / 2, SLOW * 2, far]), [2, 3]);
    }
}

//! Moves of messages to the dead-letter queue of their queue's policy, and of what no reply can carry.
//!
//! A move deletes a row that is still as a delivery left it and inserts its message into the other queue, in one statement:
//! it is in one of the two, never in both. Its table is named before the dead-letter queue's, its rows are locked in the
//! order of their ids, and rows that others have locked are passed over, so that no ring of waiting can arise, whichever
//! way others move.

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::error;
use super::policies::Policies;
use super::row::column;
use super::settle::{Fences, delete_live, outcomes, place, verdicts, wanted_and_live};
use super::settle_many::{FirstLook, held};
use super::statement::{Effect, Plan, Sight, Statement};
use crate::domain::dead_letter::{Cause, SetAside};
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::policy::DeadLetterPolicy;
use crate::domain::{Delivery, Error, Kind, QueueName, Receipt, Result, Seldom, Timestamp};

/// Stands for the dead-letter queue's table. No queue can be named like it, because of the `$`.
const DEAD_LETTERS: &str = "{$dead_letters}";

/// For how long a move waits for tables while others wait for what was read with its messages.
const BRIEF: &str = "100ms";

/// How long other statements wait.
const USUAL: &str = "2s";

/// After how many milliseconds a move is tried again that failed.
pub(super) const PAUSE_MS: i64 = 1_000;

/// The same for a message that cannot be handed over: the database needs seconds to look at some of them.
pub(super) const UNREADABLE_PAUSE_MS: i64 = 60_000;

/// Stores what was deleted as dead letters of the queue `$6`. `{reason}` says why, and `{handed_over}` how often each was
/// handed over.
macro_rules! bury_gone {
    ($reason:literal, $queue:literal, $handed_over:literal) => {
        concat!(
            "INSERT INTO {$dead_letters} (vt, message, headers)
  SELECT clock_timestamp(), g.message, CASE WHEN jsonb_typeof(g.headers) = 'object' THEN g.headers ELSE '{}'::jsonb END
    || jsonb_build_object('x-pgmq-dead-letter', jsonb_build_object('queue', ",
            $queue,
            ", 'msg_id', g.msg_id, 'read_ct', ",
            $handed_over,
            ", 'enqueued_at', g.enqueued_at, 'reason', ",
            $reason,
            "))
  FROM gone AS g ORDER BY g.msg_id RETURNING msg_id"
        )
    };
}

/// Where a trigger of the user's swallows a dead letter, the division by zero takes back the rest.
macro_rules! all_are_buried {
    () => {
        "1 / ((SELECT count(*) FROM buried) = (SELECT count(*) FROM gone))::integer = 1"
    };
}

/// `$5` reasons, `$6` queue, `$7` how many of each message's reads gave it to nobody.
const DEAD_LETTER: Statement = Statement::new(
    "dead_letter",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: dead_letter\n",
        held!(
            ", w.reason",
            ", $5::text[]) WITH ORDINALITY AS w(msg_id, read_ct, enqueued_at, last_read_at, reason"
        ),
        ", gone AS (DELETE FROM {q} AS q USING held
  WHERE {same}
  RETURNING held.ordinal, held.reason, q.msg_id, q.read_ct, q.enqueued_at, q.message, q.headers),
buried AS (",
        bury_gone!("g.reason", "$6::text", "g.read_ct - $7::integer"),
        ") SELECT g.ordinal, {size} FROM gone AS g WHERE ",
        all_are_buried!(),
        "{and_all}"
    ),
)
.planned(Plan::BySize);

/// `$7` reason.
const DEAD_LETTER_LIVE: Statement = Statement::new(
    "dead_letter_or_tell",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: dead_letter_or_tell\n",
        wanted_and_live!(),
        ", gone AS (",
        delete_live!(", q.msg_id, q.read_ct, q.enqueued_at, q.message, q.headers"),
        "), buried AS (",
        bury_gone!("$7::text", "$5::text", "g.read_ct"),
        "), settled AS (SELECT g.ordinal, NULL::timestamptz AS vt FROM gone AS g WHERE ",
        all_are_buried!(),
        ")\n",
        verdicts!()
    ),
);

const IS_THERE: Statement = Statement::new(
    "is_there",
    Effect::Reads,
    "-- pgmq-grpc: is_there
SELECT count(*) > 0 AS is_there FROM pgmq.meta AS m WHERE m.queue_name = $1::text
  AND to_regclass(format('pgmq.%I', pgmq.format_table_name(m.queue_name, 'q'))) IS NOT NULL",
);

/// Says that a dead-letter queue cannot be used, however many messages it concerns.
static WARNED: Seldom = Seldom::new();

/// Says that messages stay that cannot be handed over.
static STUCK: Seldom = Seldom::new();

/// Why a message cannot be handed over to anybody.
pub(super) struct Unreadable {
    /// In words for its header.
    pub(super) reason: &'static str,
    /// How many of its reads gave it to nobody.
    pub(super) uncounted: i32,
}

/// What became of messages that a read found and that were handed over often enough.
#[derive(Default)]
pub(super) struct WornOut {
    /// Those that left the queue.
    pub(super) set_aside: Option<SetAside>,
    /// Those that could not be moved now; they are to be tried again soon.
    pub(super) stuck: Vec<i64>,
}

impl Policies {
    /// Where messages of a queue go that were handed over too often; none if its policy has no such queue. One that would
    /// hand them on itself, which only plain SQL can bring about, is none: letters would travel in a ring.
    pub fn dead_letters_of(&self, queue: &QueueName) -> Option<DeadLetterPolicy> {
        let policy = self.policy_of(queue);
        let dead_letter = policy.dead_letter.as_ref()?;
        (!self.hands_on(queue, &dead_letter.queue)).then(|| dead_letter.clone())
    }

    fn hands_on(&self, queue: &QueueName, dead_letter_queue: &QueueName) -> bool {
        // pgmq folds the names of tables.
        let is_same = queue.as_str().to_lowercase() == dead_letter_queue.as_str().to_lowercase();
        is_same || self.policy_of(dead_letter_queue).dead_letter.is_some()
    }
}

impl Connection {
    /// Where somebody can have dead letters of a queue go now.
    ///
    /// # Errors
    /// `QueueNotFound`; `DeadLetterQueueMissing` without a policy for it; `DeadLetterChain`.
    pub async fn dead_letter_queue(&mut self, queue: &QueueName) -> Result<QueueName> {
        self.table(queue).await?;
        let policies = self.policies();
        let policy = policies.policy_of(queue);
        let Some(dead_letter) = &policy.dead_letter else {
            let why =
                "the queue's policy has no dead-letter queue; UpdateQueue gives it one; nothing was applied";
            return Err(Error::new(Kind::DeadLetterQueueMissing, why).with("queue", queue.as_str()));
        };
        if policies.hands_on(queue, &dead_letter.queue) {
            let why = "the dead-letter queue hands dead letters on; nothing was applied";
            return Err(Error::new(Kind::DeadLetterChain, why)
                .with("dead_letter_queue", dead_letter.queue.as_str())
                .with("queue", queue.as_str()));
        }
        Ok(dead_letter.queue.clone())
    }

    /// Moves deliveries of distinct messages that nobody has locked to another queue, each for its reason. `uncounted` of
    /// each message's reads gave it to nobody.
    ///
    /// # Errors
    /// As [`Connection::settle_unlocked`]; `DeadLetterQueueMissing`; `RefusedByDatabase` where a trigger swallows a dead letter.
    pub async fn dead_letter_unlocked(
        &mut self,
        queue: &QueueName,
        to: &QueueName,
        receipts: &[&Receipt],
        reasons: &[&str],
        uncounted: i32,
        sight: Sight,
    ) -> Result<Vec<FirstLook>> {
        let statement = self.burial(queue, to, &DEAD_LETTER, sight).await?;
        let fences = Fences::of(receipts.iter().copied());
        let name = queue.as_str();
        let mut parameters = fences.parameters();
        parameters.extend::<[Parameter<'_>; 3]>([
            (&reasons, Type::TEXT_ARRAY),
            (&name, Type::TEXT),
            (&uncounted, Type::INT4),
        ]);
        let rows = match self.query(&statement, &parameters).await {
            Ok(rows) => rows,
            Err(error) => return Err(self.burial_failed(queue, to, error).await),
        };
        let mut looks = vec![FirstLook::NotSettled; receipts.len()];
        for row in &rows {
            let done = ItemResult { outcome: Outcome::Done, vt: None };
            *place(&mut looks, column(row, "ordinal")?)? = FirstLook::Told(done);
        }
        Ok(looks)
    }

    /// Moves distinct deliveries to another queue, each with its own outcome, in the same order; waits for locked rows. In
    /// an open transaction nothing has happened after `DeadLetterQueueMissing`.
    ///
    /// # Errors
    /// `QueueNotFound`; `DeadLetterQueueMissing`; `QueueBusy` if another transaction holds one of the rows for more than
    /// 2 s.
    pub async fn dead_letter_or_tell(
        &mut self,
        queue: &QueueName,
        to: &QueueName,
        receipts: &[Receipt],
        cause: &Cause,
    ) -> Result<Vec<ItemResult>> {
        let statement = self.burial(queue, to, &DEAD_LETTER_LIVE, Sight::Quick).await?;
        let fences = Fences::of(receipts.iter());
        let created_at: Vec<Timestamp> = receipts.iter().map(Receipt::queue_created_at).collect();
        let (name, reason) = (queue.as_str(), cause.reason());
        let mut parameters = fences.parameters();
        parameters.extend::<[Parameter<'_>; 3]>([
            (&name, Type::TEXT),
            (&created_at, Type::TIMESTAMPTZ_ARRAY),
            (&reason, Type::TEXT),
        ]);
        self.mark().await?;
        match self.query(&statement, &parameters).await {
            Ok(rows) if rows.is_empty() && !receipts.is_empty() => {
                self.catalog().forget(queue);
                Err(Error::queue_not_found(queue.as_str()))
            }
            Ok(rows) => outcomes(&rows, receipts.len()),
            Err(error) => Err(self.burial_failed(queue, to, error).await),
        }
    }

    /// Moves those of deliveries that were handed over as often as the queue's policy allows, so that they are not once
    /// more. Where there is no dead-letter queue, none is. One that cannot be moved is no failure of the read.
    pub(super) async fn set_worn_out_aside(
        &mut self,
        queue: &QueueName,
        read: impl Iterator<Item = &Delivery>,
    ) -> WornOut {
        let Some(policy) = self.policies().dead_letters_of(queue) else {
            return WornOut::default();
        };
        let worn_out: Vec<&Delivery> =
            read.filter(|delivery| delivery.message.read_ct > policy.max_receives).collect();
        if worn_out.is_empty() {
            return WornOut::default();
        }
        let (to, reason) = (&policy.queue, Cause::MaxReceives.reason());
        let mut moved = Vec::with_capacity(worn_out.len());
        let mut failure = self.bury(queue, to, &worn_out, reason, 1, &mut moved).await.err();
        if worn_out.len() > 1 && failure.as_ref().is_some_and(error::may_be_one_items_fault) {
            for delivery in &worn_out {
                if let Err(error) = self.bury(queue, to, &[*delivery], reason, 1, &mut moved).await {
                    failure = Some(error);
                }
            }
        }
        let mut stuck: Vec<i64> = worn_out.iter().map(|delivery| delivery.message.msg_id).collect();
        stuck.retain(|msg_id| !moved.contains(msg_id));
        match failure {
            Some(error) if error.kind() == Kind::DeadLetterQueueMissing => {
                Self::warn_of_missing(queue, to);
                stuck.clear();
            }
            Some(error) if !stuck.is_empty() => Self::warn_of_stuck(queue, to, &error),
            Some(_) | None => {}
        }
        let set_aside = SetAside { to: Some(to.clone()), msg_ids: moved };
        WornOut { set_aside: Some(set_aside).filter(|aside| !aside.msg_ids.is_empty()), stuck }
    }

    /// Moves messages aside that nobody gets now, and notes which, also where it fails afterwards.
    async fn bury(
        &mut self,
        queue: &QueueName,
        to: &QueueName,
        deliveries: &[&Delivery],
        reason: &str,
        uncounted: i32,
        moved: &mut Vec<i64>,
    ) -> Result<()> {
        let receipts: Vec<&Receipt> = deliveries.iter().map(|delivery| &delivery.receipt).collect();
        let reasons = vec![reason; receipts.len()];
        self.begin_brief_try().await?;
        let looks = self.dead_letter_unlocked(queue, to, &receipts, &reasons, uncounted, Sight::Quick).await;
        let each = receipts.iter().zip(looks.iter().flatten());
        moved.extend(
            each.filter(|(_, look)| matches!(look, FirstLook::Told(_))).map(|(receipt, _)| receipt.msg_id()),
        );
        let ended = self.end_brief_try(looks.is_err()).await;
        looks.and(ended)
    }

    /// What follows waits but shortly for tables, because others wait for what was read with its messages. In a transaction
    /// it can be taken back alone.
    async fn begin_brief_try(&mut self) -> Result<()> {
        match self.in_transaction() {
            true => self.mark().await,
            false => self.set_lock_timeout(BRIEF).await,
        }
    }

    async fn end_brief_try(&mut self, has_failed: bool) -> Result<()> {
        match (self.in_transaction(), has_failed) {
            (true, true) => self.return_to_mark().await,
            (true, false) => Ok(()),
            (false, _) => self.set_lock_timeout(USUAL).await,
        }
    }

    /// Moves messages aside that cannot be handed over, and notes which. Gives the ids of those that cannot be moved now; they are
    /// to be hidden for a while, uncounted.
    pub(super) async fn set_all_unreadable_aside(
        &mut self,
        queue: &QueueName,
        deliveries: &[&Delivery],
        why: &Unreadable,
        set_aside: &mut Vec<SetAside>,
    ) -> Vec<i64> {
        let mut stuck = Vec::new();
        for delivery in deliveries {
            match self.set_unreadable_aside(queue, delivery, why).await {
                Ok(aside) => set_aside.extend(aside),
                Err(error) => {
                    let (msg_id, queue) = (delivery.message.msg_id, queue.as_str());
                    let error = crate::domain::error::chain(&error);
                    if let Some(not_logged) = STUCK.take() {
                        let reason = why.reason;
                        tracing::warn!(
                            queue,
                            msg_id,
                            reason,
                            not_logged,
                            error,
                            "message that cannot be handed over cannot be moved either"
                        );
                    }
                    stuck.push(msg_id);
                }
            }
        }
        stuck
    }

    /// Moves a message that cannot be handed over to the dead-letter queue, or to the archive, where there is no such queue or
    /// it refuses the message. Gives none if somebody touched it since.
    ///
    /// # Errors
    /// As any statement that writes to both; the open transaction is as before.
    async fn set_unreadable_aside(
        &mut self,
        queue: &QueueName,
        delivery: &Delivery,
        why: &Unreadable,
    ) -> Result<Option<SetAside>> {
        let msg_id = delivery.receipt.msg_id();
        if let Some(DeadLetterPolicy { queue: to, .. }) = self.policies().dead_letters_of(queue) {
            let mut msg_ids = Vec::new();
            match self.bury(queue, &to, &[delivery], why.reason, why.uncounted, &mut msg_ids).await {
                Err(error) if msg_ids.is_empty() => match error.kind() {
                    Kind::DeadLetterQueueMissing => Self::warn_of_missing(queue, &to),
                    _ if error::may_be_one_items_fault(&error) => Self::warn_of_stuck(queue, &to, &error),
                    _ => return Err(error),
                },
                // Where it is there, whatever failed afterwards fails the next statement too.
                Ok(()) | Err(_) => {
                    let aside = Some(SetAside { to: Some(to), msg_ids });
                    let aside = aside.filter(|aside| !aside.msg_ids.is_empty());
                    if aside.is_some() {
                        let queue = queue.as_str();
                        tracing::warn!(
                            queue,
                            msg_id,
                            reason = why.reason,
                            "message that cannot be handed over is a dead letter"
                        );
                    }
                    return Ok(aside);
                }
            }
        }
        self.begin_brief_try().await?;
        let moved = self.move_to_archive(queue, delivery, why).await;
        let ended = self.end_brief_try(moved.is_err()).await;
        match moved {
            Ok(true) => Ok(Some(SetAside { to: None, msg_ids: vec![msg_id] })),
            Ok(false) => ended.map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Says that messages stay for now which should go to the dead-letter queue.
    fn warn_of_stuck(queue: &QueueName, to: &QueueName, error: &Error) {
        if WARNED.take().is_some() {
            let error = crate::domain::error::chain(error);
            let (queue, to) = (queue.as_str(), to.as_str());
            tracing::warn!(queue, dead_letter_queue = to, error, "dead letters could not be moved yet");
        }
    }

    /// Says that a queue does without its dead-letter queue.
    pub fn warn_of_missing(queue: &QueueName, to: &QueueName) {
        if WARNED.take().is_some() {
            let (queue, to) = (queue.as_str(), to.as_str());
            tracing::warn!(
                queue,
                dead_letter_queue = to,
                "the dead-letter queue is missing; messages go on as if there were none"
            );
        }
    }

    /// A statement that moves messages from one queue to another.
    async fn burial(
        &mut self,
        queue: &QueueName,
        to: &QueueName,
        statement: &Statement,
        sight: Sight,
    ) -> Result<Statement> {
        let table = self.table(queue).await?;
        let grave = self.table(to).await.map_err(|error| match error.kind() {
            Kind::QueueNotFound => missing(to).caused_by(error),
            _ => error,
        })?;
        let mut statement = statement.seen_on(&table, sight);
        statement.text = statement.text.replace(DEAD_LETTERS, &grave.queue).into();
        Ok(statement)
    }

    /// Which of the two queues a failed move lacks, if it lacks one. An open transaction is set back to its mark.
    async fn burial_failed(&mut self, queue: &QueueName, to: &QueueName, error: Error) -> Error {
        match error.kind() {
            Kind::QueueNotFound => {}
            // It can be either's table.
            Kind::QueueBusy => return self.missing(queue, error).with("dead_letter_queue", to.as_str()),
            _ => return self.missing(queue, error),
        }
        self.catalog().forget(to);
        let is_there = async {
            self.return_to_mark().await?;
            let rows = self.query(&IS_THERE, &[(&to.as_str(), Type::TEXT)]).await?;
            rows.first().map_or(Ok(false), |row| column::<bool>(row, "is_there"))
        };
        match is_there.await {
            Ok(false) => missing(to).caused_by(error),
            Ok(true) | Err(_) => self.missing(queue, error),
        }
    }
}

fn missing(to: &QueueName) -> Error {
    let why = format!("the dead-letter queue {:?} does not exist; nothing was applied", to.as_str());
    Error::new(Kind::DeadLetterQueueMissing, why).with("dead_letter_queue", to.as_str())
}

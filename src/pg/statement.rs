//! SQL statements with their names, their effects and their limits of time.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::catalog::QueueTable;

/// What it means to lose the connection while a statement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It changes nothing: nothing was applied.
    Reads,
    /// It may have been applied, and doing it again is safe.
    Repeatable,
    /// It may have been applied, and doing it again could do it twice.
    Writes,
}

/// A row may be held for several receipts.
macro_rules! all_are_gone {
    () => {
        "1 / ((SELECT count(*) FROM gone) = (SELECT count(DISTINCT (h.msg_id, h.enqueued_at)) FROM held AS h))::integer = 1"
    };
}

/// How long a statement may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeLimit {
    /// Until its caller's deadline.
    Deadline,
    /// As long as it takes: the caller's deadline ends only the wait for it.
    None,
}

/// How a statement that passes over locked rows looks at those that it has locked itself, which are `held`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    /// As fast as can be: one that was changed just then may be left, as if others had locked it.
    Quick,
    /// Each is found and changed, unless a trigger of the user's swallows the change: then all is taken back.
    Sure,
}

impl Sight {
    /// What stands around the change of held rows: `{gone}` before it, and behind it `{all}`, or `{and_all}` where it stands
    /// in a part `gone` already. The division by zero takes everything back.
    const fn marks(self) -> [(&'static str, &'static str); 3] {
        match self {
            Self::Quick => [("{gone}", ""), ("{all}", ""), ("{and_all}", "")],
            Self::Sure => [
                ("{gone}", ", gone AS ("),
                ("{all}", concat!(") SELECT g.* FROM gone AS g WHERE ", all_are_gone!())),
                ("{and_all}", concat!(" AND ", all_are_gone!())),
            ],
        }
    }
}

/// A named SQL text. `{q}` and `{a}` stand for a queue's and its archive's table, `{size}` for the size of the former,
/// and [`QueueTable::row_marks`] and [`Sight::marks`] for its rows.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) name: &'static str,
    pub(super) text: Text,
    pub(super) effect: Effect,
    pub(super) time_limit: TimeLimit,
    /// Whether a session which runs it often keeps it prepared.
    pub(super) plan: Plan,
}

/// For how long the plan of a statement is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// For one run.
    Once,
    /// For all parameters, and for tables of all sizes.
    ForEver,
    /// For all parameters, until the table has grown. Its rows say how large that is, by the mark `{size}`.
    BySize,
}

/// The text of a statement.
#[derive(Debug, Clone)]
pub(super) enum Text {
    /// As it stands in the source.
    Fixed(&'static str),
    /// Made for a queue or a version.
    Made(Arc<str>),
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Made(text.into())
    }
}

/// What a text takes beside its bytes.
const TEXT_OVERHEAD: u64 = 128;

/// The texts that were made for queues, so that each is made once as long as there is room: where more queues are in use,
/// those that were not used for long are made anew.
pub(super) struct Texts {
    made: Cache<MadeText, Arc<str>, ByBytes>,
    queues: AtomicUsize,
}

/// The texts of one queue.
#[derive(Clone)]
pub(super) struct QueueTexts {
    all: Arc<Texts>,
    queue: usize,
}

/// What a text is made of. The fixed one is known by its place, which is compared much faster than a KiB or two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MadeText {
    queue: usize,
    fixed_at: usize,
    fixed_bytes: usize,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<MadeText, Arc<str>> for ByBytes {
    fn weight(&self, _: &MadeText, text: &Arc<str>) -> u64 {
        text.len() as u64 + TEXT_OVERHEAD
    }
}

impl Texts {
    /// Keeps about so many bytes.
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        let most = usize::try_from(bytes / 1_024).unwrap_or(usize::MAX);
        Arc::new(Self { made: Cache::with_weighter(most, bytes, ByBytes), queues: AtomicUsize::new(0) })
    }

    /// The place for the texts of one queue more, which nobody else has.
    pub(super) fn of_another_queue(self: &Arc<Self>) -> QueueTexts {
        QueueTexts { all: Arc::clone(self), queue: self.queues.fetch_add(1, Ordering::Relaxed) }
    }
}

impl QueueTexts {
    fn get(&self, fixed: &'static str, make: impl FnOnce() -> String) -> Arc<str> {
        let key = MadeText { queue: self.queue, fixed_at: fixed.as_ptr().addr(), fixed_bytes: fixed.len() };
        self.all.made.get(&key).unwrap_or_else(|| {
            let text: Arc<str> = make().into();
            self.all.made.insert(key, Arc::clone(&text));
            text
        })
    }
}

impl fmt::Debug for QueueTexts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("QueueTexts").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Statement {
    /// A statement whose text begins with its name in a comment, as `pg_stat_statements` and logs show it.
    pub(super) const fn new(name: &'static str, effect: Effect, text: &'static str) -> Self {
        Self { name, text: Text::Fixed(text), effect, time_limit: TimeLimit::Deadline, plan: Plan::Once }
    }

    /// The same without a limit of time, for what may take an hour.
    pub(super) const fn unlimited(mut self) -> Self {
        self.time_limit = TimeLimit::None;
        self
    }

    /// The same with a plan that is good for longer.
    pub(super) const fn planned(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// The statement for one queue's tables, in which locked rows are looked at in a way. Only the quick one is for every
    /// day: the text of the other is not kept.
    pub(super) fn seen_on(&self, table: &QueueTable, sight: Sight) -> Self {
        match sight {
            Sight::Quick => self.on(table),
            Sight::Sure => Self {
                text: for_table(&self.text, table, &table.archive, sight).into(),
                plan: Plan::Once,
                ..*self
            },
        }
    }

    /// The statement for one queue's tables.
    pub(super) fn on(&self, table: &QueueTable) -> Self {
        let make = |text: &str| for_table(text, table, &table.archive, Sight::Quick);
        let text = match &self.text {
            Text::Fixed(fixed) => table.texts.get(fixed, || make(fixed)),
            Text::Made(text) => make(text).into(),
        };
        let plan = match self.plan {
            // The size of a table with partitions is not its own.
            Plan::BySize if table.partitioned => Plan::Once,
            plan => plan,
        };
        Self { text: Text::Made(text), plan, ..*self }
    }

    /// The statement for one queue's table beside another table in the place of its archive. Its text is not kept: there may
    /// be as many as pairs of queues.
    pub(super) fn on_pair(&self, table: &QueueTable, archive: &str) -> Self {
        Self { text: for_table(&self.text, table, archive, Sight::Quick).into(), plan: Plan::Once, ..*self }
    }
}

fn for_table(text: &str, table: &QueueTable, archive: &str, sight: Sight) -> String {
    let fenced = match table.fenced_by_read_time {
        true => text.to_owned(),
        false => without_last_read_at(text),
    };
    let marks = table.row_marks(sight).into_iter().chain(sight.marks());
    let text = marks.fold(fenced, |text, (mark, part)| text.replace(mark, part));
    // In one pass: a queue may be named like a mark.
    let with_names = |text: &str| {
        let parts = text.split("{q}").map(|part| part.replace("{a}", archive));
        parts.collect::<Vec<_>>().join(&table.queue)
    };
    // The name as a constant is looked up when the statement is planned, and not in each run.
    let size =
        format!("(SELECT pg_relation_size('{}'::regclass)) AS table_bytes", table.queue.replace('\'', "''"));
    text.split("{size}").map(with_names).collect::<Vec<_>>().join(&size)
}

/// pgmq before 1.10 has no column `last_read_at`: statements mark it as `/*L*/ … /*/L*/` to be left out there.
fn without_last_read_at(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, marked)) = rest.split_once("/*L*/") {
        kept.push_str(before);
        rest = marked.split_once("/*/L*/").map_or("", |(_, after)| after);
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_many_queues_are_made_once_each_and_take_no_more_than_they_may() {
        const BYTES: u64 = 64 * 1024;
        let texts = Texts::new(BYTES);
        let made = |queue: &QueueTexts, fixed| {
            let mut made = false;
            let text = queue.get(fixed, || {
                made = true;
                format!("{} of {}", "x".repeat(1_000), queue.queue)
            });
            assert!(text.ends_with(&format!(" {}", queue.queue)));
            made
        };
        let first = texts.of_another_queue();
        assert!(made(&first, "a") && made(&first, "b") && !made(&first, "a") && !made(&first, "b"));
        let others: Vec<QueueTexts> = (0..1_000).map(|_| texts.of_another_queue()).collect();
        assert!(others.iter().all(|queue| made(queue, "a")));
        assert!(texts.made.weight() <= BYTES, "{}", texts.made.weight());
        assert!(texts.made.len() > 32, "{}", texts.made.len());
    }

    #[test]
    fn marked_columns_are_left_out() {
        assert_eq!(without_last_read_at("a/*L*/, b/*/L*/, c/*L*/, d/*/L*/"), "a, c");
        assert_eq!(without_last_read_at("a, c"), "a, c");
    }
}

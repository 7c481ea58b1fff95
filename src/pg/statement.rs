//! SQL statements with their names, their effects and their limits of time.

use std::borrow::Cow;

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

/// How long a statement may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeLimit {
    /// Until its caller's deadline.
    Deadline,
    /// As long as it takes: the caller's deadline ends only the wait for it.
    None,
}

/// A named SQL text. `{q}` and `{a}` stand for a queue's and its archive's table, and
/// [`QueueTable::row_marks`] for its rows.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) name: &'static str,
    pub(super) text: Cow<'static, str>,
    pub(super) effect: Effect,
    pub(super) time_limit: TimeLimit,
    /// One plan is good for all parameters, so that a session which runs it often keeps it prepared.
    pub(super) keeps_plan: bool,
}

impl Statement {
    /// A statement whose text begins with its name in a comment, as `pg_stat_statements` and logs show it.
    pub(super) const fn new(name: &'static str, effect: Effect, text: &'static str) -> Self {
        Self { name, text: Cow::Borrowed(text), effect, time_limit: TimeLimit::Deadline, keeps_plan: false }
    }

    /// The same without a limit of time, for what may take an hour.
    pub(super) const fn unlimited(mut self) -> Self {
        self.time_limit = TimeLimit::None;
        self
    }

    /// The same with a plan that is good for all parameters and for tables of all sizes.
    pub(super) const fn keeping_its_plan(mut self) -> Self {
        self.keeps_plan = true;
        self
    }

    /// The statement for one queue's tables.
    pub(super) fn on(&self, table: &QueueTable) -> Self {
        let fenced = self.clone().fenced_by_read_time(table.fenced_by_read_time);
        let marks = table.row_marks();
        let text = marks.iter().fold(fenced.text, |text, (mark, part)| text.replace(mark, part).into());
        // In one pass: a queue may be named like a mark.
        let parts = text.split("{q}").map(|part| part.replace("{a}", &table.archive));
        let text = parts.collect::<Vec<_>>().join(&table.queue);
        Self { text: Cow::Owned(text), ..fenced }
    }

    /// The statement for a pgmq with or without the column `last_read_at`.
    pub(super) fn fenced_by_read_time(mut self, has_last_read_at: bool) -> Self {
        if !has_last_read_at {
            self.text = Cow::Owned(without_last_read_at(&self.text));
        }
        self
    }
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
    fn marked_columns_are_left_out() {
        assert_eq!(without_last_read_at("a/*L*/, b/*/L*/, c/*L*/, d/*/L*/"), "a, c");
        assert_eq!(without_last_read_at("a, c"), "a, c");
    }
}

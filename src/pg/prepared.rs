//! Statements that a session keeps prepared, because it has run them often.
//!
//! Only statements whose plan is good for all parameters are marked for it: a plan that is made once does not know how
//! many items an array has. Nor does it know how large a table has grown since; where that matters, the statement is
//! prepared again after the table has doubled.

use std::hash::BuildHasher;

use hashbrown::HashMap;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Statement};

use super::database::Parameter;

/// A text is prepared when the session runs it for this time: not for queues that are used once in a while.
const WORTH_IT: u32 = 4;

/// The most characters of all texts that are prepared. A plan takes about a hundred times as many bytes of the database's
/// memory: that of a read 200 KB, of many sends 50 KB, of one send 25 KB.
const MOST_CHARACTERS: usize = 256 * 1024;

/// The most texts of which it is counted how often they run.
const MOST_COUNTED: usize = 4_096;

/// What was not used for so many runs of the session makes room. Where more queues are used in turn than there is room
/// for, some stay prepared and the others are not: taking each other's places would cost more than it saves.
const STALE: u64 = 10_000;

/// A table up to this size is small for every plan.
const SMALL_TABLE_BYTES: i64 = 64 * 1024;

/// What one session has prepared.
pub(super) struct Prepared<S = Statement> {
    ready: HashMap<Box<str>, Ready<S>>,
    /// How many characters those have together.
    characters: usize,
    /// How often others have run, by the hashes of their texts, which are long: two texts of one hash count as one.
    counted: HashMap<u64, u32>,
    runs: u64,
}

struct Ready<S> {
    statement: S,
    /// The size of the table for which it was planned, where that matters.
    planned_for: Option<i64>,
    last_run: u64,
}

impl Prepared {
    /// The prepared statement of a text; none while it is not worth a round trip.
    ///
    /// # Errors
    /// The database's. Nothing was run then.
    pub(super) async fn statement(
        &mut self,
        client: &Client,
        text: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Option<Statement>, Error> {
        if let Some(statement) = self.find(text) {
            return Ok(Some(statement));
        }
        if !self.is_worth_it(text) {
            return Ok(None);
        }
        let types: Vec<Type> = parameters.iter().map(|(_, parameter_type)| parameter_type.clone()).collect();
        let statement = client.prepare_typed(text, &types).await?;
        self.keep(text, statement.clone());
        Ok(Some(statement))
    }
}

impl<S> Default for Prepared<S> {
    fn default() -> Self {
        Self { ready: HashMap::new(), characters: 0, counted: HashMap::new(), runs: 0 }
    }
}

impl<S: Clone> Prepared<S> {
    fn find(&mut self, text: &str) -> Option<S> {
        self.runs += 1;
        let ready = self.ready.get_mut(text)?;
        ready.last_run = self.runs;
        Some(ready.statement.clone())
    }

    /// Whether a text that is not prepared runs often enough to be, and has room.
    fn is_worth_it(&mut self, text: &str) -> bool {
        let hash = self.hash(text);
        if let Some(times) = self.counted.get_mut(&hash) {
            *times = times.saturating_add(1);
            return *times >= WORTH_IT && self.make_room(text.len());
        }
        if self.counted.len() >= MOST_COUNTED {
            self.counted.clear();
        }
        self.counted.insert(hash, 1);
        false
    }

    fn hash(&self, text: &str) -> u64 {
        self.counted.hasher().hash_one(text)
    }

    /// Whether there is room for so many characters more, once what is not used any more has made it.
    fn make_room(&mut self, characters: usize) -> bool {
        while self.characters + characters > MOST_CHARACTERS {
            match self.ready.iter().min_by_key(|(_, ready)| ready.last_run) {
                Some((text, ready)) if ready.last_run + STALE < self.runs => {
                    let text = text.clone();
                    self.forget(&text);
                }
                _ => return false,
            }
        }
        true
    }

    fn keep(&mut self, text: &str, statement: S) {
        self.counted.remove(&self.hash(text));
        self.characters += text.len();
        self.ready.insert(text.into(), Ready { statement, planned_for: None, last_run: self.runs });
    }

    /// Notes how large the table was for which a text was planned, and has it prepared again if the table has become more
    /// than twice as large since.
    pub(super) fn planned_for(&mut self, text: &str, table_bytes: i64) {
        let Some(ready) = self.ready.get_mut(text) else { return };
        match ready.planned_for {
            None => ready.planned_for = Some(table_bytes.max(SMALL_TABLE_BYTES)),
            Some(before) if table_bytes > before.saturating_mul(2) => {
                self.forget(text);
                self.counted.insert(self.hash(text), WORTH_IT);
            }
            Some(_) => {}
        }
    }

    /// Forgets a statement that has failed, so that nothing that is wrong with it stays.
    pub(super) fn forget(&mut self, text: &str) {
        self.counted.remove(&self.hash(text));
        if self.ready.remove(text).is_some() {
            self.characters -= text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs texts of a thousand characters in turn, so many times each, and gives how often one was prepared.
    fn run(prepared: &mut Prepared<()>, queues: std::ops::Range<usize>, times: usize) -> usize {
        let mut count = 0;
        for _ in 0..times {
            for queue in queues.clone() {
                let text = format!("{queue:01000}");
                if prepared.find(&text).is_none() && prepared.is_worth_it(&text) {
                    prepared.keep(&text, ());
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn a_text_is_prepared_when_it_has_run_a_few_times_and_again_once_its_table_has_doubled() {
        let mut prepared = Prepared::default();
        assert_eq!(run(&mut prepared, 0..1, 3), 0);
        assert_eq!(run(&mut prepared, 0..1, 100), 1);
        let text = format!("{:01000}", 0);
        prepared.planned_for(&text, 1);
        prepared.planned_for(&text, SMALL_TABLE_BYTES * 2);
        assert_eq!(run(&mut prepared, 0..1, 1), 0);
        prepared.planned_for(&text, SMALL_TABLE_BYTES * 2 + 1);
        assert_eq!(run(&mut prepared, 0..1, 100), 1);
        prepared.forget(&text);
        assert!(prepared.ready.is_empty() && prepared.characters == 0);
    }

    #[test]
    fn of_more_texts_in_turn_than_there_is_room_for_some_stay_prepared() {
        let mut prepared = Prepared::default();
        let room = MOST_CHARACTERS / 1_000;
        assert_eq!(run(&mut prepared, 0..room * 4, 50), room);
        assert_eq!(prepared.ready.len(), room);
    }

    #[test]
    fn what_is_not_used_any_more_makes_room() {
        let mut prepared = Prepared::default();
        let room = MOST_CHARACTERS / 1_000;
        assert_eq!(run(&mut prepared, 0..room, WORTH_IT as usize), room);
        let times = usize::try_from(STALE).expect("a small number") / room + 10;
        assert_eq!(run(&mut prepared, room..room * 2, times), room);
        assert!(prepared.characters <= MOST_CHARACTERS && prepared.ready.len() == room);
    }
}

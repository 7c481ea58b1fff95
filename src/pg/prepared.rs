//! Statements that a session keeps prepared, because it has run them often.
//!
//! Only statements whose plan is good for all parameters are marked for it: a plan that is made once does not know how
//! many items an array has. Nor does it know how large a table has grown since; where that matters, the statement is
//! prepared again after the table has doubled.

use hashbrown::HashMap;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Statement};

use super::database::Parameter;

/// A text is prepared when the session runs it for this time: not for queues that are used once in a while.
const WORTH_IT: u32 = 4;

/// The most texts that are known. Beyond it a new one takes another's place, so that many queues in turn cost the database
/// no memory.
const MAX_TEXTS: usize = 128;

/// What one session has prepared.
#[derive(Default)]
pub(super) struct Prepared {
    known: HashMap<String, Known>,
}

/// A table up to this size is small for every plan.
const SMALL_TABLE_BYTES: i64 = 64 * 1024;

enum Known {
    /// It has run so many times.
    Seen(u32),
    /// It is prepared, for a table of so many bytes where that matters.
    Ready(Statement, Option<i64>),
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
        if self.known.len() >= MAX_TEXTS && !self.known.contains_key(text) {
            let another = self.known.keys().next().cloned();
            self.known.remove(&another.unwrap_or_default());
        }
        let Some(known) = self.known.get_mut(text) else {
            self.known.insert(text.to_owned(), Known::Seen(1));
            return Ok(None);
        };
        match known {
            Known::Ready(statement, _) => return Ok(Some(statement.clone())),
            Known::Seen(times) if *times + 1 < WORTH_IT => {
                *times += 1;
                return Ok(None);
            }
            Known::Seen(_) => {}
        }
        let types: Vec<Type> = parameters.iter().map(|(_, parameter_type)| parameter_type.clone()).collect();
        let statement = client.prepare_typed(text, &types).await?;
        *known = Known::Ready(statement.clone(), None);
        Ok(Some(statement))
    }

    /// Notes how large the table was for which a text was planned, and has it prepared again if the table has become more
    /// than twice as large since.
    pub(super) fn planned_for(&mut self, text: &str, table_bytes: i64) {
        let Some(known) = self.known.get_mut(text) else { return };
        let Known::Ready(_, planned_for) = known else { return };
        match *planned_for {
            None => *planned_for = Some(table_bytes.max(SMALL_TABLE_BYTES)),
            Some(before) if table_bytes > before.saturating_mul(2) => *known = Known::Seen(WORTH_IT),
            Some(_) => {}
        }
    }

    /// Forgets a statement that has failed, so that nothing that is wrong with it stays.
    pub(super) fn forget(&mut self, text: &str) {
        self.known.remove(text);
    }
}

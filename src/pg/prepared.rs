//! Statements that a session keeps prepared, because it has run them often.
//!
//! Only statements whose plan is good for all parameters are marked for it: a plan that is made once knows neither how
//! many items an array has nor how large a table has grown since.

use hashbrown::HashMap;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Statement};

use super::database::Parameter;

/// A text is prepared when the session runs it for this time: not for queues that are used once in a while.
const WORTH_IT: u32 = 4;

/// The most texts that are known. Beyond it all are forgotten, so that many queues in turn cost the database no memory.
const MAX_TEXTS: usize = 64;

/// What one session has prepared.
#[derive(Default)]
pub(super) struct Prepared {
    known: HashMap<String, Known>,
}

enum Known {
    /// It has run so many times.
    Seen(u32),
    Ready(Statement),
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
            self.known.clear();
        }
        let Some(known) = self.known.get_mut(text) else {
            self.known.insert(text.to_owned(), Known::Seen(1));
            return Ok(None);
        };
        match known {
            Known::Ready(statement) => return Ok(Some(statement.clone())),
            Known::Seen(times) if *times + 1 < WORTH_IT => {
                *times += 1;
                return Ok(None);
            }
            Known::Seen(_) => {}
        }
        let types: Vec<Type> = parameters.iter().map(|(_, parameter_type)| parameter_type.clone()).collect();
        let statement = client.prepare_typed(text, &types).await?;
        *known = Known::Ready(statement.clone());
        Ok(Some(statement))
    }

    /// Forgets a statement that has failed, so that nothing that is wrong with it stays.
    pub(super) fn forget(&mut self, text: &str) {
        self.known.remove(text);
    }
}

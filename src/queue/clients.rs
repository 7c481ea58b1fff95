//! Who calls: listed for all replicas, and written down for the others in the servers' own schema.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Broker, Operation};
use crate::domain::error::chain;
use crate::domain::page::{Page, Paged};
use crate::domain::{Client, Deadline, Result};
use crate::engine::clients::{Change, State};
use crate::pg::{ClientRows, ClientState};

/// The pause between two looks at what has changed.
const PAUSE: Duration = Duration::from_secs(5);

/// How often a replica with clients says that it is alive, though nothing has changed.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// The most clients of one statement.
const MOST_ROWS: usize = 1_000;

/// How long one statement may take.
const WRITE_TIME: Duration = Duration::from_secs(15);

/// How long the last one may take, at the server's end.
const GOODBYE: Duration = Duration::from_secs(1);

/// A page of the clients of all replicas.
#[derive(Debug)]
pub struct ListClients {
    /// What the names begin with.
    pub prefix: String,
    /// Only those of this queue; empty for all.
    pub queue: String,
    /// Which page.
    pub page: Page,
}

impl Operation for ListClients {
    const NAME: &'static str = "list_clients";
    type Output = Paged<Client>;

    async fn run(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Paged<Client>> {
        let Self { prefix, queue, page } = self;
        let mut clients = broker.clients.list(&broker.replica);
        clients
            .retain(|client| client.name.starts_with(&prefix) && (queue.is_empty() || client.queue == queue));
        if broker.database.has_own_schema() {
            let mut connection = broker.database.connect(Self::NAME, deadline).await?;
            clients.extend(connection.list_clients(&broker.replica, &prefix, &queue, &page).await?);
        }
        let after = [0, 1, 2, 3, 4].map(|part| page.after(part).unwrap_or_default());
        clients.retain(|client| page.after(0).is_none() || client.key() > after);
        clients.sort_unstable_by(|one, other| one.key().cmp(&other.key()));
        clients.truncate(usize::try_from(page.rows()).unwrap_or(usize::MAX));
        let bytes = |client: &Client| client.key().map(str::len).iter().sum();
        Ok(page.cut(clients, bytes, |client| client.key().map(str::to_owned).to_vec()))
    }
}

/// Writes down this replica's clients until the token is cancelled, and takes them back then. Nothing is written while
/// nothing changes, but for a rare sign of life.
pub async fn write_down_clients(broker: Arc<Broker>, stop: CancellationToken) {
    let mut writer = Writer { broker, written_at: None, in_doubt: false };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(PAUSE) => {}
        }
        if let Err(error) = writer.write().await {
            tracing::debug!(cause = chain(&error), "this server's clients are not written down for now");
        }
    }
    if writer.written_at.is_some() {
        // What stays is forgotten by the others after a while.
        let _ = timeout(GOODBYE, writer.forget()).await;
    }
}

struct Writer {
    broker: Arc<Broker>,
    /// When others were told last; none if nothing of this replica's is written down.
    written_at: Option<Instant>,
    /// The last try failed, and what it did is not known.
    in_doubt: bool,
}

impl Writer {
    async fn write(&mut self) -> Result<()> {
        let broker = Arc::clone(&self.broker);
        loop {
            let changes = broker.clients.changes(MOST_ROWS);
            if !broker.database.has_own_schema() {
                broker.clients.forget_told();
                return Ok(());
            }
            let lives = self.written_at.is_some_and(|written| written.elapsed() >= SIGN_OF_LIFE);
            if changes.is_empty() && !lives {
                return Ok(());
            }
            let count = changes.len();
            if let Err(error) = self.tell(changes).await {
                self.in_doubt = true;
                broker.clients.forget_told();
                return Err(error);
            }
            if count < MOST_ROWS {
                return Ok(());
            }
        }
    }

    async fn tell(&mut self, changes: Vec<Change>) -> Result<()> {
        let Broker { database, replica, clients, .. } = &*self.broker;
        let mut connection = database.connect("write_clients", Deadline::within(WRITE_TIME)).await?;
        if self.in_doubt {
            connection.forget_clients(replica).await?;
            (self.in_doubt, self.written_at) = (false, None);
        }
        let mut rows = ClientRows::default();
        for Change { name, role, queue, address, state } in changes {
            rows.push((name, role, queue, address), state.map(columns));
        }
        let was_unknown = connection.write_clients(replica, &rows).await?;
        // Somebody thought that this replica is gone, or the table was emptied by a crash.
        if was_unknown && self.written_at.is_some() {
            clients.forget_told();
        }
        self.written_at = Some(Instant::now());
        Ok(())
    }

    async fn forget(&self) -> Result<()> {
        let mut connection =
            self.broker.database.connect("forget_clients", Deadline::within(GOODBYE)).await?;
        connection.forget_clients(&self.broker.replica).await
    }
}

fn columns(State { in_flight, since, last_seen }: State) -> ClientState {
    (in_flight, since, last_seen)
}

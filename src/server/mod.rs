//! The process: listeners, layers, health, reflection, and an orderly end.

mod banner;
mod connection;
mod health;
mod in_flight;
mod layer;
mod linger;
mod listener;
mod receiving;
mod routes;
mod shutdown;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, DatabaseSource, DatabaseUrl, Tls};
use crate::domain::Limits;
use crate::engine::merge::Bounds;
use crate::engine::{Clients, Dispatch, Events, Parked, Streams};
use crate::pg::embedded::{self, Embedded};
use crate::pg::{
    Announcements, Database, DatabaseState, Monitor, PoolLimits, Upgrader, follow_policies, remove_archived,
    remove_expired_keys,
};
use crate::queue::{Announcer, Broker, Budget, Merging, Rules, Transactions, Watches, write_down_clients};
use crate::service::Service;

use connection::Connections;
pub use health::check as check_health;
use in_flight::InFlight;
use layer::Around;
use listener::Listener;
use shutdown::Signals;

/// How long the start waits to hear from the database before it says hello without.
const FIRST_CHECK: Duration = Duration::from_secs(5);

/// How long clients may take to close their connections once everything is answered.
const GOODBYE: Duration = Duration::from_secs(2);

/// The longest time in which a stream that is to end still serves settles.
const LONGEST_SETTLE_GRACE: Duration = Duration::from_secs(10);

/// What the last give-backs have, however late it is.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Why a server could not start, or did not end in order.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The embedded Postgres did not start.
    #[error(transparent)]
    Embedded(#[from] embedded::Error),
    /// The connections to the database could not be prepared.
    #[error("the connections to the database cannot be prepared")]
    Database(#[from] crate::domain::Error),
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Reflection could not be prepared.
    #[error("the contract's descriptors cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Signals could not be listened for.
    #[error("signals cannot be listened for")]
    Signals(#[source] std::io::Error),
    /// The embedded Postgres ended while it was needed.
    #[error("the embedded postgres ended by itself")]
    PostgresEnded(#[source] embedded::Error),
    /// Calls were still running when the drain's time was up.
    #[error("calls were still running after the drain limit of {0:?}; they were cut off")]
    DrainLimit(Duration),
    /// A second signal came.
    #[error("ended at once by a second signal")]
    SecondSignal,
}

/// Serves until a signal comes, and then ends in order.
///
/// # Errors
/// Whatever prevents the start, and an end that was not in order.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let signals = Signals::listen().map_err(ServeError::Signals)?;
    // Before the database, so that a taken address is known at once.
    let listeners = Listener::bind_all(&config.listen).await?;
    let Some(mut embedded) = start_database(&config, &signals).await? else {
        return Ok(());
    };
    let served = serve_on(&config, listeners, embedded.as_mut(), signals).await;
    if let Some(embedded) = embedded {
        embedded.stop().await?;
    }
    served
}

/// Starts the embedded Postgres if there is to be one; none at all if a signal came meanwhile.
async fn start_database(config: &Config, signals: &Signals) -> Result<Option<Option<Embedded>>, ServeError> {
    let DatabaseSource::Embedded(wanted) = &config.database else {
        return Ok(Some(None));
    };
    let options = embedded::Options {
        data_dir: wanted.data_dir.clone(),
        ephemeral: wanted.ephemeral,
        bin_dir: wanted.bin_dir.clone(),
        tcp_port: wanted.tcp_port,
    };
    tokio::select! {
        started = Embedded::start(&options) => Ok(Some(Some(started?))),
        () = signals.first() => Ok(None),
    }
}

async fn serve_on(
    config: &Config,
    listeners: Vec<Listener>,
    embedded: Option<&mut Embedded>,
    signals: Signals,
) -> Result<(), ServeError> {
    let url = match (&config.database, &embedded) {
        (DatabaseSource::External(url), _) => (**url).clone(),
        (DatabaseSource::Embedded(_), Some(embedded)) => of_embedded(embedded),
        (DatabaseSource::Embedded(_), None) => return Ok(()),
    };
    let pool = PoolLimits { connections: config.pool_size, waiting_calls: config.max_waiting_calls };
    let database = Database::new(&url, pool, config.deduplication_window)?;
    let limits = Limits { max_message_bytes: config.max_message_bytes, queue_layout: config.queue_layout };
    let monitor = Monitor::new(database.clone(), &url, !config.no_install, config.health_interval)?;
    let mut state = monitor.subscribe();
    let (events, tasks, drain_begins) = (Events::default(), TaskTracker::new(), CancellationToken::new());
    // Sends and settles find connections too, however many queues are read.
    let reads = usize::try_from(config.pool_size).unwrap_or(usize::MAX).saturating_mul(3) / 4;
    let dispatch = Dispatch::new(Arc::new(database.clone()), &events, &tasks, &drain_begins, reads);
    let waiting = Bounds { items: config.max_waiting_messages, bytes: config.max_waiting_bytes };
    let parked = Parked::default();
    let in_flight = InFlight::new(parked.clone());
    let broker = Arc::new(Broker {
        database: database.clone(),
        clients: Clients::default(),
        streams: Streams::default(),
        merged_calls: Arc::clone(&in_flight) as _,
        began: std::time::Instant::now(),
        budget: Budget::new(config.max_waiting_bytes),
        merging: Merging::new(&database, &events, config.pool_size, waiting, &tasks, &parked),
        dispatch,
        rules: Rules::new(limits, database.policies()),
        events,
        upgrader: Upgrader::new(&database, &url, !config.no_install),
        watches: Watches::default(),
        transactions: Transactions::new(config.transactions),
        replica: replica(),
        max_stream_age: config.max_stream_age,
        settle_grace: LONGEST_SETTLE_GRACE.min(config.drain_timeout / 2),
        drain: drain_begins,
        tasks,
    });
    let health = health::Health::new(monitor.subscribe(), broker.drain.clone()).await;
    let service = Service::new(Arc::clone(&broker), config.default_deadline);
    let routes = routes::build(service, health.service())?;

    let background = TaskTracker::new();
    let stop_background = CancellationToken::new();
    let announcements = Announcements::new(&database, &url)?;
    background.spawn(Announcer::new(&broker, announcements).run(stop_background.clone()));
    background.spawn(monitor.run(stop_background.clone()));
    let window = config.deduplication_window;
    background.spawn(remove_expired_keys(database.clone(), window, stop_background.clone()));
    background.spawn(follow_policies(database.clone(), stop_background.clone()));
    background.spawn(remove_archived(database.clone(), stop_background.clone()));
    background.spawn(write_down_clients(Arc::clone(&broker), stop_background.clone()));
    background.spawn(health.run(stop_background.clone()));
    // So that the banner can say which pgmq was found; a database that is down does not hold up the start.
    let _ = timeout(FIRST_CHECK, state.wait_for(|state| *state != DatabaseState::Unknown)).await;

    background.spawn({
        let (watch, stop) = (Arc::clone(&in_flight).watch(), stop_background.clone());
        async move { stop.run_until_cancelled(watch).await }
    });
    let connections = Connections::new(
        Around::new(routes, in_flight, config.default_deadline),
        config.max_connections,
        config.max_stream_age,
        broker.drain.clone(),
    );
    banner::print(config, &listeners, &url, embedded.as_deref(), database.known_installation().as_deref());
    for listener in listeners {
        connections.accept_from(listener);
    }

    let ended = tokio::select! {
        () = signals.first() => Ok(()),
        error = postgres_ended(embedded) => Err(ServeError::PostgresEnded(error)),
    };
    let limit = config.drain_timeout;
    tracing::info!(drain_limit = ?limit, "draining");
    let drained = tokio::select! {
        drained = drain(&broker, &connections, limit) => drained,
        () = signals.second() => Err(ServeError::SecondSignal),
    };
    stop_background.cancel();
    background.close();
    let _ = timeout(GOODBYE, background.wait()).await;
    tracing::info!("stopped");
    ended.and(drained)
}

/// Ends in order: no new calls, true answers for those that wait, `closing` on every stream, then the connections, and
/// at last what their clients never took goes back into its queues.
async fn drain(broker: &Broker, connections: &Connections, limit: Duration) -> Result<(), ServeError> {
    let until = Instant::now() + limit;
    broker.drain.cancel();
    broker.tasks.close();
    let answered = timeout_at(until, broker.tasks.wait()).await;
    // A stream that never ends by itself, such as a health watch, must not hold up the end.
    let _ = timeout_at(until.min(Instant::now() + GOODBYE), connections.closed()).await;
    connections.abort();
    let last = until.min(Instant::now() + GOODBYE).max(Instant::now() + LAST_MOMENT);
    let _ = timeout_at(last, connections.closed()).await;
    let _ = timeout_at(last, broker.tasks.wait()).await;
    answered.map_err(|_| ServeError::DrainLimit(limit))
}

async fn postgres_ended(embedded: Option<&mut Embedded>) -> embedded::Error {
    match embedded {
        Some(embedded) => embedded.ended().await,
        None => std::future::pending().await,
    }
}

fn of_embedded(embedded: &Embedded) -> DatabaseUrl {
    DatabaseUrl { config: embedded.config(), tls: Tls::Disable, ca_file: None, client_certificate: None }
}

/// A name that differs between servers of one database, also on one machine.
fn replica() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    let id = uuid::Uuid::now_v7().simple().to_string();
    format!("{}-{}", host.as_deref().unwrap_or("pgmq-grpc"), id.split_at(24).1)
}

//! What replays from an archive and redrives from a dead-letter queue have in common: messages move in steps.

mod faults;
mod limits;
mod refused;
mod together;

use std::time::Duration;

use pgmq_grpc::proto::v1::{ArchiveFilter, RedriveMessagesRequest, ReplayArchivedMessagesRequest};
use tonic::{Code, Request, Status};

use crate::harness::{Client, PATIENCE, Refusal, Test};
use crate::redrive::{redrive_of, with_dead_letters};
use crate::replay::{archive_of, bodies, replay_of};

/// A call that moves messages to the queue `orders`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// From its archive.
    Replay,
    /// From the dead-letter queue `dead`.
    Redrive,
}

impl Move {
    const BOTH: [Self; 2] = [Self::Replay, Self::Redrive];

    /// A test with so many messages to move, whose bodies are their ids.
    async fn of(self, count: i64) -> Test {
        match self {
            Self::Replay => archive_of(count).await,
            Self::Redrive => with_dead_letters(count).await,
        }
    }

    /// The table from which messages are moved.
    fn source(self) -> &'static str {
        match self {
            Self::Replay => "a_orders",
            Self::Redrive => "q_dead",
        }
    }

    /// The queue that is named where that table is locked.
    fn source_queue(self) -> &'static str {
        match self {
            Self::Replay => "orders",
            Self::Redrive => "dead",
        }
    }

    /// The name of the statement that moves.
    fn statement(self) -> &'static str {
        match self {
            Self::Replay => "replay_archived",
            Self::Redrive => "redrive",
        }
    }

    /// Moves those of certain ids, or any where there are none, as many at most; 0 is the default. Gives how many were moved,
    /// and whether more are there.
    async fn some(self, client: Client, msg_ids: Vec<i64>, max_messages: i32) -> Result<(i64, bool), Status> {
        self.within(2 * PATIENCE, client, msg_ids, max_messages).await
    }

    /// The same with a deadline.
    async fn within(
        self,
        deadline: Duration,
        mut client: Client,
        msg_ids: Vec<i64>,
        max_messages: i32,
    ) -> Result<(i64, bool), Status> {
        match self {
            Self::Replay => {
                let filter = Some(ArchiveFilter { msg_ids, ..Default::default() });
                let request = ReplayArchivedMessagesRequest { filter, max_messages, ..replay_of("orders") };
                let mut request = Request::new(request);
                request.set_timeout(deadline);
                let done = client.admin.replay_archived_messages(request).await?.into_inner();
                Ok((done.replayed_count, done.more))
            }
            Self::Redrive => {
                let request = RedriveMessagesRequest { msg_ids, max_messages, ..redrive_of("dead") };
                let mut request = Request::new(request);
                request.set_timeout(deadline);
                let done = client.admin.redrive_messages(request).await?.into_inner();
                Ok((done.moved_count, done.more))
            }
        }
    }

    /// Moves until nothing is left, and counts.
    async fn all(self, client: &Client) -> i64 {
        let mut count = 0;
        loop {
            match self.some(client.clone(), vec![], 0).await {
                Ok((moved, more)) => {
                    count += moved;
                    if !more {
                        return count;
                    }
                }
                // Somebody else has had all that is left for longer than this one waits.
                Err(refused) => drop(Refusal::expect(&refused, Code::Aborted, "QUEUE_BUSY")),
            }
        }
    }

    /// Checks that each of so many messages is in one of the two places, and gives how many were moved.
    async fn expect_each_in_one_place(self, test: &Test, count: i64) -> i64 {
        let (left, moved) = (bodies(test, self.source()).await, bodies(test, "q_orders").await);
        let mut all: Vec<i64> =
            left.iter().chain(&moved).map(|body| body.parse().expect("an id as body")).collect();
        all.sort_unstable();
        assert!(all.iter().copied().eq(1..=count), "{self:?}: {} left, {} moved", left.len(), moved.len());
        i64::try_from(moved.len()).unwrap()
    }
}

/// From now on every statement that sends to `orders` takes a second.
pub(crate) async fn slow_down(test: &Test) {
    test.run(
        "CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_sleep(1); RETURN NULL; END $$;
         CREATE TRIGGER slow_down BEFORE INSERT ON pgmq.q_orders FOR EACH STATEMENT EXECUTE FUNCTION slow_down()",
    )
    .await;
}

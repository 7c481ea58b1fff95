//! Callers whose messages go aside and come back: plain SQL moves them as dead letters, and a redrive moves them back.

use pgmq_grpc::proto::v1::admin_service_client::AdminServiceClient;
use pgmq_grpc::proto::v1::{Message, RedriveMessagesRequest, RedriveMessagesResponse};
use tokio_postgres::Client;

use super::worker::{Asked, Worker};
use super::{ASIDE, HOMES, plain_sql, readers, senders};
use crate::history::record::{Action, Outcome, Part, Send, Settle, Target, Verdict};

/// Sends messages, sets some of them aside, brings them back, and uses receipts from before.
pub(super) async fn back_and_forth(mut worker: Worker) {
    let mut connection: Option<Client> = None;
    while worker.pause(150).await {
        let Some(client) = connection.take().filter(|client| !client.is_closed()) else {
            connection = plain_sql::connect(&worker.run).await;
            continue;
        };
        let send = Send { queue: HOMES.to_owned(), body: worker.body(), ..Send::default() };
        senders::send_one(&mut worker, send).await;
        let held = readers::read(&mut worker, HOMES, 4, 2.0, 0.0).await;
        for message in &held {
            if worker.chance(70)
                && let Some(msg_id) = set_aside(&worker, &client, message).await
            {
                redrive(&mut worker, msg_id, &message.message).await;
            }
        }
        // Those of moved messages mean nothing any more.
        readers::delete(&mut worker, HOMES, &held, false).await;
        connection = Some(client);
    }
}

fn taken(queue: &str, msg_id: i64, outcome: Option<Outcome>) -> Part {
    let (action, target) = (Action::Delete, Target::Id(msg_id));
    Part::Settle(Settle { queue: queue.to_owned(), action, target, by_policy: false, outcome, vt: None })
}

fn stored(queue: &str, body: &str, msg_id: Option<i64>) -> Part {
    Part::Send(Send { queue: queue.to_owned(), body: body.to_owned(), msg_id, ..Send::default() })
}

/// Moves a message as a dead letter, and gives its new id; none if it was gone, or nobody knows.
async fn set_aside(worker: &Worker, client: &Client, message: &Message) -> Option<i64> {
    let sql = format!(
        "WITH gone AS (DELETE FROM pgmq.q_{HOMES} AS q WHERE q.msg_id = $1 RETURNING q.message, q.headers)
         INSERT INTO pgmq.q_{ASIDE} (vt, message, headers)
         SELECT clock_timestamp(), g.message, coalesce(g.headers, '{{}}') || '{{\"x-pgmq-dead-letter\": {{\"queue\": \"{HOMES}\"}}}}'
         FROM gone AS g RETURNING msg_id"
    );
    let asked = worker.run.now();
    let moved = client.query_opt(&sql, &[&message.msg_id]).await;
    let (verdict, parts) = match &moved {
        Ok(Some(row)) => {
            let parts = vec![
                taken(HOMES, message.msg_id, Some(Outcome::Done)),
                stored(ASIDE, &message.message, Some(row.get(0))),
            ];
            (Verdict::Done, parts)
        }
        Ok(None) => (Verdict::Done, vec![taken(HOMES, message.msg_id, Some(Outcome::NotFound))]),
        Err(_) => {
            let parts = vec![taken(HOMES, message.msg_id, None), stored(ASIDE, &message.message, None)];
            (Verdict::Unknown("connection lost".to_owned()), parts)
        }
    };
    worker.record(Asked::whole("a dead letter by SQL", parts), asked, verdict);
    moved.ok().flatten().map(|row| row.get(0))
}

/// Moves a message back, and tries again if nobody knows what came of it, and sometimes though everybody knows.
async fn redrive(worker: &mut Worker, msg_id: i64, body: &str) {
    for _ in 0..3 {
        let request = RedriveMessagesRequest {
            dead_letter_queue: ASIDE.to_owned(),
            msg_ids: vec![msg_id],
            ..Default::default()
        };
        let call =
            Asked::whole("RedriveMessages", vec![taken(ASIDE, msg_id, None), stored(HOMES, body, None)]);
        let fill = |response: &RedriveMessagesResponse, call: &mut Asked, _| {
            call.parts = match (response.moved_count, response.more) {
                (1.., _) => vec![taken(ASIDE, msg_id, Some(Outcome::Done)), stored(HOMES, body, None)],
                (_, false) => vec![taken(ASIDE, msg_id, Some(Outcome::NotFound))],
                (_, true) => panic!("a redrive that moved nothing says that more is there"),
            };
        };
        let mut client = AdminServiceClient::new(worker.connection());
        let answer =
            worker.ask(call, request, async move |request| client.redrive_messages(request).await, fill);
        if answer.await.is_some_and(|response| !response.more) && !worker.chance(30) {
            return;
        }
    }
}

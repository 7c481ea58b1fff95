//! Callers with queues of their own, which they purge, drop and make anew, and those who change the queues of all.

use pgmq_grpc::proto::v1::admin_service_client::AdminServiceClient;
use pgmq_grpc::proto::v1::{
    CreateQueueRequest, CreateQueueResponse, DropQueueRequest, DropQueueResponse, Message, PurgeQueueRequest,
    PurgeQueueResponse, QueueLayout, SendRequest, SendResponse, SetQueueLayoutRequest,
};
use rand::Rng;

use super::keyed::acknowledge;
use super::plain_sql;
use super::readers::{deliver, settle_as};
use super::worker::{Asked, Worker};
use super::{GROUPS, KEYED, ORDERS, RESULTS};
use crate::harness::seconds;
use crate::history::record::{Action, Empty, FaultKind, Part, Read, Send, Verdict};

/// A queue of one caller's own, as it is now.
struct Own {
    name: String,
    /// What histories call it: its name and how often it was made.
    label: String,
}

/// Makes queues, drops them, and makes them anew, where old receipts and old keys must mean nothing.
pub(super) async fn make_and_drop(mut worker: Worker) {
    // What is unknown might happen to the next queue of the name; so after an unknown answer it is left alone.
    worker.impatience = 0;
    let mut number = 0;
    while worker.pause(300).await {
        number += 1;
        let name = format!("{}_{number}", worker.who.replace('-', "_"));
        let mut old: Vec<(String, Vec<Message>)> = Vec::new();
        for made in 1..=3 {
            let own = Own { label: format!("{name}#{made}"), name: name.clone() };
            let Some(held) = own.live(&mut worker, &old).await else { break };
            old.push((own.label, held));
        }
    }
}

impl Own {
    /// The life of a queue, and the receipts that outlive it; none if an answer was not certain.
    async fn live(&self, worker: &mut Worker, old: &[(String, Vec<Message>)]) -> Option<Vec<Message>> {
        self.create(worker).await?;
        for (label, messages) in old {
            let action = [Action::Delete, Action::Archive, Action::Hide][worker.random.random_range(0..3)];
            settle_as(worker, &self.name, label, action, messages).await?;
        }
        let keys = ["a", "b"];
        for key in keys {
            self.send(worker, Some(key)).await?;
            self.send(worker, None).await?;
        }
        let mut held = self.read(worker).await?;
        if let Some(message) = held.pop() {
            settle_as(worker, &self.name, &self.label, Action::Delete, &[message]).await?;
        }
        self.send(worker, Some(keys[0])).await?;
        if worker.chance(50) {
            self.purge(worker).await?;
            self.send(worker, Some(keys[1])).await?;
            self.send(worker, None).await?;
            held.extend(self.read(worker).await?);
        }
        self.remove(worker).await?;
        Some(held)
    }

    async fn create(&self, worker: &mut Worker) -> Option<()> {
        worker.run.made().insert(self.label.clone(), self.name.clone());
        let layout = if worker.chance(50) { QueueLayout::Tuned } else { QueueLayout::Pgmq };
        let request =
            CreateQueueRequest { queue: self.name.clone(), layout: layout.into(), ..Default::default() };
        let mut client = worker.client();
        let fill = |_: &CreateQueueResponse, _: &mut Asked, _| {};
        let call = Asked::new("CreateQueue", Vec::new());
        let created =
            worker.ask(call, request, async move |request| client.create_queue(request).await, fill);
        created.await.filter(|response| response.created).map(drop)
    }

    /// Sends one message; under a key always the same.
    async fn send(&self, worker: &mut Worker, key: Option<&str>) -> Option<()> {
        let body = key.map_or_else(|| worker.body(), |key| format!("\"{key} of {}\"", self.name));
        let key = key.map(str::to_owned);
        let request = SendRequest {
            queue: self.name.clone(),
            message: body.clone(),
            deduplication_id: key.clone().unwrap_or_default(),
            ..Default::default()
        };
        let send = Send { queue: self.label.clone(), body, key, ..Send::default() };
        let mut client = worker.client();
        let fill = |response: &SendResponse, call: &mut Asked, _| {
            acknowledge(call, [(self.label.as_str(), response.msg_id, response.deduplicated)]);
        };
        let call = Asked::new("Send", vec![Part::Send(send)]);
        worker.ask(call, request, async move |request| client.send(request).await, fill).await.map(drop)
    }

    async fn read(&self, worker: &mut Worker) -> Option<Vec<Message>> {
        let request = pgmq_grpc::proto::v1::ReadBatchRequest {
            queue: self.name.clone(),
            max_messages: 3,
            visibility_timeout: seconds(1.0),
            ..Default::default()
        };
        let read = Read { queue: self.label.clone(), ..Read::default() };
        let mut client = worker.client();
        let answer = worker.ask(
            Asked::new("ReadBatch", vec![Part::Read(read)]),
            request,
            async move |request| client.read_batch(request).await,
            |response, call, now| deliver(&mut call.parts, &response.messages, now),
        );
        answer.await.map(|response| response.messages)
    }

    async fn purge(&self, worker: &mut Worker) -> Option<()> {
        purge(worker, &self.name, &self.label).await
    }

    /// Drops it, through a server or behind their backs.
    async fn remove(&self, worker: &mut Worker) -> Option<()> {
        let drops = Part::Empty(Empty { queue: self.label.clone(), drops: true, count: None });
        if worker.chance(40) {
            let client = plain_sql::connect(&worker.run).await?;
            let asked = worker.run.now();
            let dropped = client.batch_execute(&format!("SELECT pgmq.drop_queue('{}')", self.name)).await;
            let verdict = match &dropped {
                Ok(()) => Verdict::Done,
                Err(_) => Verdict::Unknown("connection lost".to_owned()),
            };
            worker.record(Asked::new("pgmq.drop_queue", vec![drops]), asked, verdict);
            dropped.ok()?;
        } else {
            let mut client = worker.client();
            let request = DropQueueRequest { queue: self.name.clone() };
            let fill = |_: &DropQueueResponse, _: &mut Asked, _| {};
            let call = Asked::new("DropQueue", vec![drops]);
            worker.ask(call, request, async move |request| client.drop_queue(request).await, fill).await?;
        }
        worker.run.made().remove(&self.label);
        Some(())
    }
}

async fn purge(worker: &mut Worker, queue: &str, label: &str) -> Option<()> {
    let empty = Empty { queue: label.to_owned(), drops: false, count: None };
    let mut client = worker.client();
    let fill = |response: &PurgeQueueResponse, call: &mut Asked, _| {
        if let [Part::Empty(empty)] = call.parts.as_mut_slice() {
            empty.count = Some(response.purged_count);
        }
    };
    let call = Asked::new("PurgeQueue", vec![Part::Empty(empty)]);
    let request = PurgeQueueRequest { queue: queue.to_owned() };
    worker.ask(call, request, async move |request| client.purge_queue(request).await, fill).await.map(drop)
}

/// Purges the queue to which transactions send, now and then.
pub(super) async fn purge_results(mut worker: Worker) {
    while worker.pause(4_000).await {
        purge(&mut worker, RESULTS, RESULTS).await;
    }
}

/// Gives queues that are in use another layout, now and then.
pub(super) async fn lay_out(mut worker: Worker) {
    worker.impatience = 2;
    while worker.pause(5_000).await {
        let queue = [ORDERS, GROUPS, KEYED][worker.random.random_range(0..3)];
        let layout = if worker.chance(50) { QueueLayout::Tuned } else { QueueLayout::Pgmq };
        let request = SetQueueLayoutRequest { queue: queue.to_owned(), layout: layout.into() };
        let mut client = AdminServiceClient::new(worker.connection());
        let from = worker.run.now();
        let call = Asked::new("SetQueueLayout", Vec::new());
        worker
            .ask(call, request, async move |request| client.set_queue_layout(request).await, |_, _, _| {})
            .await;
        worker.run.record_fault(FaultKind::Rebuilt { queue: queue.to_owned() }, from);
    }
}

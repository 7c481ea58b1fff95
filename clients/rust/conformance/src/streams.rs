//! The words of streams, and of the surroundings.

use std::collections::HashMap;
use std::process;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::poll_fn;
use pgmq_grpc_client::pb::open_transaction_request::Command;
use pgmq_grpc_client::{Client, Consume, Error, Message, Ordering, pb};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, sleep, timeout_at};

use crate::convert::{Arguments, failure, span};
use crate::words::{Failure, Runner, flag, known, live, messages, sent, text, with_condition};

impl Runner {
    pub(crate) async fn say_of_streams(
        &mut self,
        word: &str,
        client: &Client,
        with: &Arguments,
    ) -> Result<Value, Failure> {
        match word {
            "consume" => {
                let consume = consume(client, &with_condition(with))?;
                self.consumers.push(Some(consume.start()));
                Ok(json!({ "$live": self.consumers.len() - 1 }))
            }
            "take" => self.take(with).await,
            "stop" => {
                known(with, &["consumer"])?;
                let place = live(with.get("consumer").ok_or("there is no consumer")?)?;
                if let Some(consumer) = self.consumers.get_mut(place).and_then(Option::take) {
                    consumer.stop().await?;
                }
                Ok(Value::Null)
            }
            "handle" => handle(client, with).await,
            "watch" => {
                known(with, &["queues"])?;
                let queues = with.get("queues").and_then(Value::as_array).ok_or("there are no queues")?;
                self.watchers.push(client.watch(queues.iter().filter_map(Value::as_str)).await?);
                Ok(json!({ "$live": self.watchers.len() - 1 }))
            }
            "events" => self.events(with).await,
            "producer" => {
                known(with, &["queue", "idempotent"])?;
                let producer = client.queue(text(with, "queue")?).producer_builder();
                self.producers.push(Some(producer.idempotent(flag(with, "idempotent")).start()));
                Ok(json!({ "$live": self.producers.len() - 1 }))
            }
            "produce" => self.produce(client, with).await,
            "close" => {
                known(with, &["producer"])?;
                let place = live(with.get("producer").ok_or("there is no producer")?)?;
                if let Some(producer) = self.producers.get_mut(place).and_then(Option::take) {
                    producer.close().await;
                }
                Ok(Value::Null)
            }
            "hold" => self.hold(client, with).await,
            "restart_server" => {
                known(with, &["kill"])?;
                let pid = server_pid()?;
                let signal = if flag(with, "kill") { "-KILL" } else { "-TERM" };
                let status = process::Command::new("kill").args([signal, &pid]).status();
                if !status.is_ok_and(|status| status.success()) {
                    return Err(format!("the server {pid} could not be ended").into());
                }
                self.ended_server = Some(pid);
                Ok(Value::Null)
            }
            "wait_for_server" => self.wait_for_server(client).await,
            "wait" => {
                known(with, &["seconds"])?;
                sleep(span(with.get("seconds").ok_or("there are no seconds")?)?).await;
                Ok(Value::Null)
            }
            other => Err(format!("there is no word {other:?}").into()),
        }
    }

    async fn take(&mut self, with: &Arguments) -> Result<Value, Failure> {
        known(with, &["consumer", "count", "within"])?;
        let place = live(with.get("consumer").ok_or("there is no consumer")?)?;
        let count = number(with, "count")?.ok_or("take needs a count")?;
        let until = Instant::now() + within(with)?;
        let mut taken: Vec<Message> = Vec::new();
        // A consumer that was stopped gives nothing more.
        if let Some(Some(consumer)) = self.consumers.get_mut(place) {
            while taken.len() < count {
                match timeout_at(until, consumer.next()).await {
                    Ok(Some(message)) => taken.push(message?),
                    Ok(None) | Err(_) => break,
                }
            }
        }
        self.keep(taken)
    }

    async fn events(&mut self, with: &Arguments) -> Result<Value, Failure> {
        known(with, &["watcher", "count", "within"])?;
        let place = live(with.get("watcher").ok_or("there is no watcher")?)?;
        let watcher = self.watchers.get_mut(place).ok_or("there is no such watcher")?;
        let count = number(with, "count")?.ok_or("events needs a count")?;
        let until = Instant::now() + within(with)?;
        let mut events = Vec::new();
        while events.len() < count {
            let Ok(Some(event)) = timeout_at(until, watcher.next()).await else { break };
            let event = event?;
            let kind = event.kind().as_str_name().trim_start_matches("QUEUE_EVENT_KIND_").to_owned();
            events.push(json!({ "queue": event.queue, "kind": kind }));
        }
        Ok(Value::Array(events))
    }

    async fn produce(&mut self, client: &Client, with: &Arguments) -> Result<Value, Failure> {
        known(with, &["queue", "idempotent", "producer", "messages"])?;
        let producer = match with.get("producer") {
            Some(saved) => {
                let kept = self.producers.get(live(saved)?).and_then(Option::as_ref);
                kept.ok_or("there is no such producer")?.clone()
            }
            None => {
                let builder = client.queue(text(with, "queue")?).producer_builder();
                builder.idempotent(flag(with, "idempotent")).start()
            }
        };
        let sends = messages(with)?.into_iter().map(|message| producer.send(message));
        let results = join_all(sends).await;
        let result = |result: Result<_, Error>| match result {
            Ok(done) => sent(done),
            Err(error) => json!({ "error": failure(&error) }),
        };
        Ok(results.into_iter().map(result).collect())
    }

    /// Locks messages by a transaction that stays open until the end of the case.
    async fn hold(&mut self, client: &Client, with: &Arguments) -> Result<Value, Failure> {
        known(with, &["queue", "msg_ids"])?;
        let queue = text(with, "queue")?;
        let ids = with.get("msg_ids").and_then(Value::as_array).ok_or("there are no ids")?;
        let msg_ids = ids.iter().filter_map(Value::as_i64).collect();
        let delete = pb::DeleteRequest { queue: queue.clone(), msg_ids, ..Default::default() };
        // While it waits for a message, it is not idle.
        let wait = Duration::from_secs(40).try_into().ok();
        let read = pb::ReadBatchRequest { queue, wait, ..Default::default() };
        let (commands, mut given) = unbounded_channel();
        for command in
            [Command::Begin(pb::Begin::default()), Command::Delete(delete), Command::ReadBatch(read)]
        {
            let _ = commands.send(pb::OpenTransactionRequest { command: Some(command) });
        }
        let requests = poll_fn(move |context| given.poll_recv(context));
        let opened = client.raw().transactions.open_transaction(requests).await.map_err(Error::from)?;
        let mut replies = opened.into_inner();
        for _ in 0..2 {
            replies.message().await.map_err(Error::from)?;
        }
        // It ends when both have gone.
        self.holds.push(Box::new((commands, replies)));
        Ok(Value::Null)
    }

    async fn wait_for_server(&self, client: &Client) -> Result<Value, Failure> {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            let started = server_pid().ok().is_some_and(|pid| Some(pid) != self.ended_server);
            if started && client.get_server_info().timeout(Duration::from_secs(1)).await.is_ok() {
                return Ok(Value::Null);
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err("the server has not started again".into())
    }
}

fn consume(client: &Client, with: &Arguments) -> Result<Consume, String> {
    let mut consume = client.queue(text(with, "queue")?).consume();
    for (key, value) in with {
        let wrong = || format!("{value} is no {key}");
        consume = match key.as_str() {
            "queue" => consume,
            "max_in_flight" => {
                let count = value.as_i64().and_then(|count| i32::try_from(count).ok());
                consume.max_in_flight(count.ok_or_else(wrong)?)
            }
            "visibility_timeout" => consume.visibility_timeout(span(value)?),
            "conditional" => consume.conditional(value.as_str().ok_or_else(wrong)?),
            "auto_extend" => consume.auto_extend(value.as_bool().ok_or_else(wrong)?),
            "ordering" => {
                let name = format!("ORDERING_{}", value.as_str().ok_or_else(wrong)?);
                consume.ordering(Ordering::from_str_name(&name).ok_or_else(wrong)?)
            }
            other => return Err(format!("there is no argument {other:?}")),
        };
    }
    Ok(consume)
}

/// What the handler has seen so far.
#[derive(Default)]
struct Seen {
    deliveries: Vec<Value>,
    by_message: HashMap<i64, u64>,
    successes: usize,
}

async fn handle(client: &Client, with: &Arguments) -> Result<Value, Failure> {
    let own = ["count", "deliveries", "fail_first", "retry_delay", "concurrency", "action"];
    let stream: Arguments = with
        .iter()
        .filter(|(key, _)| !own.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let count = number(with, "count")?;
    let deliveries = number(with, "deliveries")?;
    let fail_first = number(with, "fail_first")?.unwrap_or(0) as u64;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let consumer = consume(client, &with_condition(&stream))?.start();
    let stopper = consumer.stopper();
    let kept = seen.clone();
    let mut handling = consumer.handle(move |message: Message| {
        let outcome = {
            let mut seen = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let body = message.json().unwrap_or(Value::Null);
            seen.deliveries.push(body);
            let times = seen.by_message.entry(message.msg_id).or_default();
            *times += 1;
            let fails = *times <= fail_first;
            seen.successes += usize::from(!fails);
            if Some(seen.successes) == count || Some(seen.deliveries.len()) == deliveries {
                stopper.stop();
            }
            if fails { Err("as the case wants it") } else { Ok(()) }
        };
        async move { outcome }
    });
    if let Some(delay) = with.get("retry_delay") {
        handling = handling.retry_delay(span(delay)?);
    }
    if let Some(concurrency) = number(with, "concurrency")? {
        handling = handling.concurrency(concurrency);
    }
    handling = match with.get("action").and_then(Value::as_str) {
        None | Some("delete") => handling,
        Some("archive") => handling.archive(),
        Some(other) => return Err(format!("there is no action {other:?}").into()),
    };
    handling.await?;
    let seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(json!({ "deliveries": seen.deliveries }))
}

fn server_pid() -> Result<String, String> {
    let file =
        std::env::var("PGMQ_GRPC_SERVER_PID_FILE").map_err(|_| "PGMQ_GRPC_SERVER_PID_FILE is not set")?;
    let pid = std::fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    Ok(pid.trim().to_owned())
}

fn number(with: &Arguments, key: &str) -> Result<Option<usize>, String> {
    let Some(value) = with.get(key) else { return Ok(None) };
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.map(Some).ok_or_else(|| format!("{value} is no {key}"))
}

fn within(with: &Arguments) -> Result<Duration, String> {
    with.get("within").map_or(Ok(Duration::from_secs(10)), span)
}

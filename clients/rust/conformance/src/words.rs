//! The words of cases, said through the client.

use std::any::Any;
use std::collections::HashMap;
use std::time::Duration;

use pgmq_grpc_client::{
    Call, Client, Consumer, Error, Handle, Message, Outcome, OutgoingMessage, Producer, QueuePolicy, Receipt,
    Rpc, Sent, Watcher, pb,
};
use serde_json::{Map, Value, json};

use crate::case::{Case, Step};
use crate::compare::compare;
use crate::convert::{
    Arguments, archived, described, described_all, failure, list_options, options, outgoing, received, span,
    with_fields,
};

/// What a step has come to, if not to a value.
pub(crate) enum Failure {
    /// The client's error, which a case may expect.
    Error(Error),
    /// A fault of the case, or of this runner.
    Fault(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<String> for Failure {
    fn from(fault: String) -> Self {
        Self::Fault(fault)
    }
}

impl From<&str> for Failure {
    fn from(fault: &str) -> Self {
        Self::Fault(fault.to_owned())
    }
}

/// Runs the steps of one case, and keeps what they have saved.
pub(crate) struct Runner {
    client: Client,
    saved: HashMap<String, Value>,
    messages: Vec<Message>,
    pub(crate) consumers: Vec<Option<Consumer>>,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) producers: Vec<Option<Producer>>,
    clients: Vec<Client>,
    /// Transactions that stay open.
    pub(crate) holds: Vec<Box<dyn Any>>,
    pub(crate) ended_server: Option<String>,
}

impl Runner {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            saved: HashMap::new(),
            messages: Vec::new(),
            consumers: Vec::new(),
            watchers: Vec::new(),
            producers: Vec::new(),
            clients: Vec::new(),
            holds: Vec::new(),
            ended_server: None,
        }
    }

    pub(crate) async fn case(&mut self, case: &Case) -> Result<(), String> {
        for (queue, with) in &case.queues {
            let call = options(self.client.create_queue(queue), with, &[])?;
            call.await.map_err(|error| format!("its queue {queue} was not made: {error}"))?;
        }
        for (number, step) in case.steps.iter().enumerate() {
            self.step(step).await.map_err(|why| format!("step {} ({}): {why}", number + 1, step.word))?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let with = match self.resolved(&Value::Object(step.with.clone()))? {
            Value::Object(with) => with,
            other => return Err(format!("{other} are no arguments")),
        };
        let client = match &step.client {
            Some(name) => self.clients.get(live(&self.resolved(name)?)?).ok_or("no such client")?.clone(),
            None => self.client.clone(),
        };
        let deadline = step.deadline.map(Duration::from_secs_f64);
        let came = self.say(&step.word, &client, &with, deadline).await;
        match (came, &step.error) {
            (Err(Failure::Fault(fault)), _) => Err(fault),
            (Err(Failure::Error(error)), None) => Err(format!("failed with {error:?}")),
            (Err(Failure::Error(error)), Some(expected)) => {
                compare(&self.resolved(expected)?, Some(&failure(&error)))
                    .map_err(|differs| format!("{differs}, in {error:?}"))
            }
            (Ok(value), Some(expected)) => Err(format!("expected the error {expected}, but came {value}")),
            (Ok(value), None) => {
                if let Some(expected) = &step.expect {
                    compare(&self.resolved(expected)?, Some(&value))?;
                }
                if let Some(name) = &step.save {
                    self.saved.insert(name.clone(), value);
                }
                Ok(())
            }
        }
    }

    /// A value with what was saved in place of `$name.path`, and with what `$text` and `$list` stand for.
    fn resolved(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => match text.strip_prefix('$') {
                Some(path) if !matches!(path, "any" | "absent") => {
                    let mut steps = path.split('.');
                    let name = steps.next().unwrap_or_default();
                    let mut found =
                        self.saved.get(name).ok_or_else(|| format!("nothing is saved as {name:?}"))?;
                    for step in steps {
                        let inner = match step.parse::<usize>() {
                            Ok(index) => found.get(index),
                            Err(_) => found.get(step),
                        };
                        found = inner.ok_or_else(|| format!("there is no {text}"))?;
                    }
                    found.clone()
                }
                _ => value.clone(),
            },
            Value::Array(items) => items.iter().map(|item| self.resolved(item)).collect::<Result<_, _>>()?,
            Value::Object(map) => match (map.get("$text"), map.get("$list")) {
                (Some(text), _) => {
                    let (piece, times) = repeated(text)?;
                    Value::from(piece.as_str().ok_or("$text repeats a text")?.repeat(times))
                }
                (_, Some(list)) => {
                    let (item, times) = repeated(list)?;
                    Value::Array(vec![self.resolved(item)?; times])
                }
                _ => {
                    let mut resolved = Map::new();
                    for (key, value) in map {
                        resolved.insert(key.clone(), self.resolved(value)?);
                    }
                    Value::Object(resolved)
                }
            },
            other => other.clone(),
        })
    }

    pub(crate) fn keep(&mut self, messages: Vec<Message>) -> Result<Value, Failure> {
        let mut values = Vec::new();
        for message in messages {
            values.push(received(&message, self.messages.len())?);
            self.messages.push(message);
        }
        Ok(Value::Array(values))
    }

    async fn say(
        &mut self,
        word: &str,
        client: &Client,
        with: &Arguments,
        deadline: Option<Duration>,
    ) -> Result<Value, Failure> {
        /// A call with the options that are given, within the deadline.
        async fn made<Q: Rpc, A: Send + 'static>(
            call: Call<Q, A>,
            with: &Arguments,
            used: &[&str],
            deadline: Option<Duration>,
        ) -> Result<A, Failure> {
            let call = options(call, with, used)?;
            Ok(match deadline {
                Some(deadline) => call.timeout(deadline).await?,
                None => call.await?,
            })
        }
        let name = || text(with, "queue");
        let queue = || name().map(|name| client.queue(name));
        Ok(match word {
            "create_queue" => described(&made(client.create_queue(name()?), with, &[], deadline).await?),
            "get_queue" => described(&made(client.get_queue(name()?), with, &[], deadline).await?),
            "list_queues" => described_all(&list_options(client.list_queues(), with, &[])?.await?),
            "update_queue" => {
                let policy = match with.get("policy") {
                    Some(Value::Object(fields)) => with_fields(&QueuePolicy::default(), fields, &[])?,
                    _ => QueuePolicy::default(),
                };
                let mut call = client.update_queue(name()?, policy);
                if let Some(fields) = with.get("clear").and_then(Value::as_array) {
                    call = call.clear(fields.iter().filter_map(Value::as_str));
                }
                described(&made(call, with, &["policy", "clear"], deadline).await?)
            }
            "drop_queue" => unit(made(client.drop_queue(name()?), with, &[], deadline).await?),
            "purge_queue" => Value::from(made(client.purge_queue(name()?), with, &[], deadline).await?),
            "get_queue_metrics" => {
                described(&made(client.get_queue_metrics(name()?), with, &[], deadline).await?)
            }
            "list_queue_metrics" => {
                described_all(&list_options(client.list_queue_metrics(), with, &[])?.await?)
            }
            "send" => sent(made(send(client, with)?, &Map::new(), &[], deadline).await?),
            "send_batch" => all_sent(made(send_batch(client, with)?, &Map::new(), &[], deadline).await?),
            "read" => {
                let messages = made(queue()?.read(), &with_condition(with), &[], deadline).await?;
                self.keep(messages)?
            }
            "pop" => {
                let messages = made(queue()?.pop(), with, &[], deadline).await?;
                self.keep(messages)?
            }
            "delete" => outcomes(made(delete(client, with)?, &Map::new(), &[], deadline).await?),
            "archive" => outcomes(made(archive(client, with)?, &Map::new(), &[], deadline).await?),
            "release" => outcomes(made(release(client, with)?, &Map::new(), &[], deadline).await?),
            "dead_letter" => outcomes(made(dead_letter(client, with)?, &Map::new(), &[], deadline).await?),
            "set_visibility_timeout" => {
                outcomes(made(set_visibility_timeout(client, with)?, &Map::new(), &[], deadline).await?)
            }
            "transact" => {
                let call = transact(client, with)?;
                transacted(&made(call, with, &["operations"], deadline).await?)
            }
            "validate_name" => {
                use pb::validate_name_request::Name;
                let (kind, value) = with.iter().next().ok_or("there is no name")?;
                let value = value.as_str().ok_or("a name is a text")?.to_owned();
                let name = match kind.as_str() {
                    "queue" => Name::Queue(value),
                    "routing_key" => Name::RoutingKey(value),
                    "pattern" => Name::Pattern(value),
                    other => return Err(format!("there are no names of {other}").into()),
                };
                unit(made(client.validate_name(name), &Map::new(), &[], deadline).await?)
            }
            "get_server_info" => described(&made(client.get_server_info(), with, &[], deadline).await?),
            "bind_topic" => {
                let call = client.bind_topic(text(with, "pattern")?, name()?);
                json!({ "created": made(call, with, &[], deadline).await? })
            }
            "unbind_topic" => {
                let call = client.unbind_topic(text(with, "pattern")?, name()?);
                json!({ "removed": made(call, with, &[], deadline).await? })
            }
            "list_topic_bindings" => {
                described_all(&list_options(client.list_topic_bindings(), with, &[])?.await?)
            }
            "test_routing" => {
                let call = client.test_routing(text(with, "routing_key")?);
                described_all(&made(call, with, &[], deadline).await?)
            }
            "send_topic" => described(&made(send_topic(client, with)?, &Map::new(), &[], deadline).await?),
            "send_topic_batch" => {
                let call = client.send_topic_batch(text(with, "routing_key")?, messages(with)?);
                described_all(&made(call, with, &["messages"], deadline).await?)
            }
            "list_messages" => {
                let messages = list_options(queue()?.list_messages(), with, &[])?.await?;
                self.keep(messages)?
            }
            "list_archived_messages" => {
                let list = list_options(queue()?.list_archived_messages(), &with_filter(with), &[])?;
                let mut values = Vec::new();
                for message in list.await? {
                    values.push(archived(&message, self.messages.len())?);
                    self.messages.push(message.message);
                }
                Value::Array(values)
            }
            "delete_archived_messages" => {
                let call = queue()?.delete_archived_messages();
                described(&made(call, &with_filter(with), &[], deadline).await?)
            }
            "replay" => described(&made(queue()?.replay(), &with_filter(with), &[], deadline).await?),
            "redrive" => {
                let queue = client.queue(text(with, "dead_letter_queue")?);
                described(&made(queue.redrive(), with, &[], deadline).await?)
            }
            "set_queue_layout" => {
                let call = client.set_queue_layout(name()?, pb::QueueLayout::Unspecified);
                described(&made(call, with, &[], deadline).await?)
            }
            "create_fifo_index" => {
                let one = with.get("queue").and_then(Value::as_str);
                unit(made(client.create_fifo_index(one), with, &["queue", "all_queues"], deadline).await?)
            }
            "convert_archive_partitioned" => {
                unit(made(client.convert_archive_partitioned(name()?), with, &[], deadline).await?)
            }
            "enable_notifications" => {
                described(&made(client.enable_notifications(name()?), with, &[], deadline).await?)
            }
            "update_notifications" => {
                described(&made(client.update_notifications(name()?), with, &[], deadline).await?)
            }
            "disable_notifications" => {
                unit(made(client.disable_notifications(name()?), with, &[], deadline).await?)
            }
            "list_notifications" => {
                described_all(&list_options(client.list_notifications(), with, &[])?.await?)
            }
            "list_clients" => described_all(&list_options(client.list_clients(), with, &[])?.await?),
            "install_pgmq" => described(&made(client.install_pgmq(), with, &[], deadline).await?),
            "connect" => {
                let mut builder = Client::builder();
                for (key, value) in with {
                    builder = match (key.as_str(), value) {
                        ("name", Value::String(name)) => builder.name(name),
                        ("metadata", Value::Object(pairs)) => {
                            pairs.iter().fold(builder, |builder, (key, value)| {
                                builder.metadata(key, value.as_str().unwrap_or_default())
                            })
                        }
                        _ => return Err(format!("a client has no {key:?}").into()),
                    };
                }
                self.clients.push(builder.connect(None)?);
                json!({ "$live": self.clients.len() - 1 })
            }
            "settle" => self.settle(with).await?,
            other => self.say_of_streams(other, client, with).await?,
        })
    }

    async fn settle(&self, with: &Arguments) -> Result<Value, Failure> {
        let place = live(with.get("message").ok_or("there is no message")?)?;
        let message = self.messages.get(place).ok_or("there is no such message")?;
        known(with, &["message", "action", "delay", "reason", "visibility_timeout"])?;
        let outcome = match text(with, "action")?.as_str() {
            "delete" => message.delete().await?,
            "archive" => message.archive().await?,
            "release" => message.release(with.get("delay").map(span).transpose()?).await?,
            "dead_letter" => {
                let reason = with.get("reason").and_then(Value::as_str).unwrap_or_default();
                message.dead_letter(reason).await?
            }
            "extend" => {
                let timeout = with.get("visibility_timeout").ok_or("extend needs a visibility_timeout")?;
                message.extend(span(timeout)?).await?
            }
            other => return Err(format!("there is no action {other:?}").into()),
        };
        Ok(outcome_word(outcome))
    }
}

fn repeated(value: &Value) -> Result<(&Value, usize), String> {
    let times = value.get(1).and_then(Value::as_u64).and_then(|times| usize::try_from(times).ok());
    match (value.get(0), times) {
        (Some(item), Some(times)) => Ok((item, times)),
        _ => Err(format!("{value} is not something and a number")),
    }
}

/// Where the runner keeps what this value stands for.
pub(crate) fn live(value: &Value) -> Result<usize, String> {
    let place = value.get("$live").and_then(Value::as_u64).and_then(|place| usize::try_from(place).ok());
    place.ok_or_else(|| format!("{value} is nothing that was saved"))
}

pub(crate) fn text(with: &Arguments, key: &str) -> Result<String, String> {
    let value = with.get(key).and_then(Value::as_str);
    value.map(str::to_owned).ok_or_else(|| format!("there is no text {key:?}"))
}

pub(crate) fn flag(with: &Arguments, key: &str) -> bool {
    with.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// Complains of arguments that are not among these.
pub(crate) fn known(with: &Arguments, keys: &[&str]) -> Result<(), String> {
    match with.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(format!("there is no argument {key:?}")),
        None => Ok(()),
    }
}

/// The arguments with a condition as text, which is what the contract has.
pub(crate) fn with_condition(with: &Arguments) -> Arguments {
    let mut with = with.clone();
    if let Some(condition) = with.get_mut("conditional") {
        *condition = Value::from(condition.to_string());
    }
    with
}

/// The arguments with the conditions on an archive in a filter, which is where the contract has them.
fn with_filter(with: &Arguments) -> Arguments {
    let (filter, mut rest): (Map<_, _>, Map<_, _>) = with
        .clone()
        .into_iter()
        .partition(|(key, _)| matches!(key.as_str(), "msg_ids" | "archived_after" | "archived_before"));
    if !filter.is_empty() {
        rest.insert("filter".to_owned(), Value::Object(filter));
    }
    rest
}

pub(crate) fn messages(with: &Arguments) -> Result<Vec<OutgoingMessage>, String> {
    let messages = with.get("messages").and_then(Value::as_array).ok_or("there are no messages")?;
    let message = |message: &Value| outgoing(message.as_object().ok_or("a message is a map")?, &[]);
    messages.iter().map(message).collect()
}

fn send(client: &Client, with: &Arguments) -> Result<Call<pb::SendRequest, Sent>, String> {
    let call = client.queue(text(with, "queue")?).send(outgoing(with, &["queue", "idempotent"])?);
    Ok(if flag(with, "idempotent") { call.idempotent() } else { call })
}

fn send_batch(client: &Client, with: &Arguments) -> Result<Call<pb::SendBatchRequest, Vec<Sent>>, String> {
    known(with, &["queue", "messages", "idempotent"])?;
    let call = client.queue(text(with, "queue")?).send_batch(messages(with)?);
    Ok(if flag(with, "idempotent") { call.idempotent() } else { call })
}

fn send_topic(client: &Client, with: &Arguments) -> Result<Call<pb::SendTopicRequest>, String> {
    let message = outgoing(with, &["routing_key", "require_match", "idempotent"])?;
    let call =
        client.send_topic(text(with, "routing_key")?, message).require_match(flag(with, "require_match"));
    Ok(if flag(with, "idempotent") { call.idempotent() } else { call })
}

fn delete(client: &Client, with: &Arguments) -> Result<Call<pb::DeleteRequest, Vec<Outcome>>, String> {
    known(with, &["queue", "msg_ids", "receipts", "messages"])?;
    Ok(client.queue(text(with, "queue")?).delete(handles(with)))
}

fn archive(client: &Client, with: &Arguments) -> Result<Call<pb::ArchiveRequest, Vec<Outcome>>, String> {
    known(with, &["queue", "msg_ids", "receipts", "messages"])?;
    Ok(client.queue(text(with, "queue")?).archive(handles(with)))
}

fn release(client: &Client, with: &Arguments) -> Result<Call<pb::ReleaseRequest, Vec<Outcome>>, String> {
    let call = client.queue(text(with, "queue")?).release(receipts(with));
    options(call, with, &["receipts", "messages"])
}

fn dead_letter(
    client: &Client,
    with: &Arguments,
) -> Result<Call<pb::DeadLetterRequest, Vec<Outcome>>, String> {
    let call = client.queue(text(with, "queue")?).dead_letter(receipts(with));
    options(call, with, &["receipts", "messages"])
}

fn set_visibility_timeout(
    client: &Client,
    with: &Arguments,
) -> Result<Call<pb::SetVisibilityTimeoutRequest, Vec<Outcome>>, String> {
    let call = client.queue(text(with, "queue")?).set_visibility_timeout(handles(with));
    options(call, with, &["msg_ids", "receipts", "messages"])
}

fn handles(with: &Arguments) -> Vec<Handle> {
    let ids = with.get("msg_ids").and_then(Value::as_array).into_iter().flatten();
    let ids = ids.filter_map(Value::as_i64).map(Handle::Id);
    ids.chain(receipts(with).into_iter().map(Handle::Receipt)).collect()
}

fn receipts(with: &Arguments) -> Vec<Receipt> {
    let list = |key: &str| with.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let messages = list("messages").into_iter().map(|message| message["receipt"].clone());
    let receipts = list("receipts").into_iter().chain(messages);
    receipts.filter_map(|receipt| receipt.as_str().map(Receipt::from)).collect()
}

fn transact(client: &Client, with: &Arguments) -> Result<Call<pb::TransactRequest>, String> {
    let mut call = client.transact();
    for operation in with.get("operations").and_then(Value::as_array).ok_or("there are no operations")? {
        let fields = operation.as_object().ok_or("an operation is a map")?;
        let (word, with) = fields.iter().next().ok_or("an operation has a word")?;
        let with = with.as_object().ok_or("an operation has arguments")?;
        call = match word.as_str() {
            "send" => call.with(send(client, with)?),
            "send_batch" => call.with(send_batch(client, with)?),
            "send_topic" => call.with(send_topic(client, with)?),
            "delete" => call.with(delete(client, with)?),
            "archive" => call.with(archive(client, with)?),
            "release" => call.with(release(client, with)?),
            "dead_letter" => call.with(dead_letter(client, with)?),
            "set_visibility_timeout" => call.with(set_visibility_timeout(client, with)?),
            other => return Err(format!("{other} is no operation")),
        };
    }
    Ok(call)
}

/// The results with what each word gives by itself.
fn transacted(reply: &pb::TransactResponse) -> Value {
    let mut value = described(reply);
    for result in value["results"].as_array_mut().into_iter().flatten() {
        for (word, given) in result.as_object_mut().into_iter().flatten() {
            *given = match word.as_str() {
                "send" | "send_topic" => given.take(),
                "send_batch" => given["results"].take(),
                _ => given["results"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|item| item["outcome"].clone())
                    .collect(),
            };
        }
    }
    value
}

fn unit((): ()) -> Value {
    Value::Null
}

pub(crate) fn sent(sent: Sent) -> Value {
    json!({ "msg_id": sent.msg_id, "deduplicated": sent.deduplicated })
}

fn all_sent(all: Vec<Sent>) -> Value {
    all.into_iter().map(sent).collect()
}

fn outcomes(outcomes: Vec<Outcome>) -> Value {
    outcomes.into_iter().map(outcome_word).collect()
}

fn outcome_word(outcome: Outcome) -> Value {
    Value::from(outcome.as_str_name().trim_start_matches("OUTCOME_"))
}

//! Between the values of cases and the contract's messages.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgmq_grpc_client::{ArchivedMessage, Call, Error, List, Message, OutgoingMessage, Paged, Rpc};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _,
};
use serde_json::{Map, Value, json};

pub(crate) type Arguments = Map<String, Value>;

/// The contract, for the names of its fields.
static CONTRACT: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let files =
        ["admin_service", "queue_service", "topic_service"].map(|name| format!("pgmq/v1/{name}.proto"));
    let set = protox::compile(files, [directory]).expect("the contract compiles");
    DescriptorPool::from_file_descriptor_set(set).expect("the contract is complete")
});

fn descriptor<T>() -> MessageDescriptor {
    let name = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
    CONTRACT.get_message_by_name(&format!("pgmq.v1.{name}")).expect("the message is of the contract")
}

/// Sets the options of a call that are given, but for those that the word has used already.
pub(crate) fn options<Q: Rpc, A>(
    mut call: Call<Q, A>,
    arguments: &Arguments,
    used: &[&str],
) -> Result<Call<Q, A>, String> {
    if let Some(request) = call.request_mut() {
        *request = with_fields(request, arguments, used)?;
    }
    Ok(call)
}

/// The same for a list.
pub(crate) fn list_options<Q: Paged, T: Send + 'static>(
    mut list: List<Q, T>,
    arguments: &Arguments,
    used: &[&str],
) -> Result<List<Q, T>, String> {
    if let Some(request) = list.request_mut() {
        *request = with_fields(request, arguments, used)?;
    }
    Ok(list)
}

/// A message with these fields.
pub(crate) fn with_fields<T: prost::Message + Default>(
    message: &T,
    arguments: &Arguments,
    used: &[&str],
) -> Result<T, String> {
    let bytes = message.encode_to_vec();
    let mut dynamic =
        DynamicMessage::decode(descriptor::<T>(), bytes.as_slice()).map_err(|error| error.to_string())?;
    let options = arguments.iter().filter(|(key, _)| !used.contains(&key.as_str()));
    fill(&mut dynamic, options)?;
    T::decode(dynamic.encode_to_vec().as_slice()).map_err(|error| error.to_string())
}

fn fill<'a>(
    message: &mut DynamicMessage,
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
) -> Result<(), String> {
    let descriptor = message.descriptor();
    for (key, value) in fields {
        let field = descriptor
            .get_field_by_name(key)
            .ok_or_else(|| format!("{} has no field {key:?}", descriptor.name()))?;
        if value.is_null() {
            continue;
        }
        let value = match value {
            Value::Array(items) if field.is_list() => {
                let items: Result<Vec<_>, _> = items.iter().map(|item| to_field(&field, item)).collect();
                prost_reflect::Value::List(items?)
            }
            value => to_field(&field, value)?,
        };
        message.set_field(&field, value);
    }
    Ok(())
}

fn to_field(field: &FieldDescriptor, value: &Value) -> Result<prost_reflect::Value, String> {
    let wrong = || format!("{value} is no value of {}", field.name());
    Ok(match field.kind() {
        Kind::String => prost_reflect::Value::String(value.as_str().ok_or_else(wrong)?.to_owned()),
        Kind::Bool => prost_reflect::Value::Bool(value.as_bool().ok_or_else(wrong)?),
        Kind::Int32 => {
            let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
            prost_reflect::Value::I32(number.ok_or_else(wrong)?)
        }
        Kind::Int64 => prost_reflect::Value::I64(value.as_i64().ok_or_else(wrong)?),
        Kind::Double => prost_reflect::Value::F64(value.as_f64().ok_or_else(wrong)?),
        Kind::Enum(kind) => {
            let word = value.as_str().ok_or_else(wrong)?;
            let full = format!("{}{word}", enum_prefix(&kind));
            let known = kind.get_value_by_name(&full).ok_or_else(wrong)?;
            prost_reflect::Value::EnumNumber(known.number())
        }
        Kind::Message(message) => {
            let mut inner = DynamicMessage::new(message.clone());
            match message.full_name() {
                "google.protobuf.Duration" => {
                    let nanos = (value.as_f64().ok_or_else(wrong)? * 1e9).round() as i64;
                    set_seconds(&mut inner, nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
                }
                "google.protobuf.Timestamp" => {
                    let since = moment(value)?.duration_since(UNIX_EPOCH).map_err(|_| wrong())?;
                    set_seconds(&mut inner, since.as_secs() as i64, i64::from(since.subsec_nanos()));
                }
                _ => fill(&mut inner, value.as_object().ok_or_else(wrong)?.iter())?,
            }
            prost_reflect::Value::Message(inner)
        }
        other => return Err(format!("no case gives a {other:?}")),
    })
}

fn set_seconds(message: &mut DynamicMessage, seconds: i64, nanos: i64) {
    message.set_field_by_name("seconds", prost_reflect::Value::I64(seconds));
    message.set_field_by_name("nanos", prost_reflect::Value::I32(nanos as i32));
}

/// What stands before the words of an enumeration, such as `QUEUE_KIND_`.
fn enum_prefix(kind: &prost_reflect::EnumDescriptor) -> String {
    let unspecified = kind.default_value().name().to_owned();
    unspecified.trim_end_matches("UNSPECIFIED").to_owned()
}

/// A message of the contract as a value of cases.
pub(crate) fn described<T: prost::Message>(message: &T) -> Value {
    let bytes = message.encode_to_vec();
    match DynamicMessage::decode(descriptor::<T>(), bytes.as_slice()) {
        Ok(dynamic) => described_fields(&dynamic),
        Err(error) => json!({ "undescribed": error.to_string() }),
    }
}

pub(crate) fn described_all<T: prost::Message>(messages: &[T]) -> Value {
    messages.iter().map(described).collect()
}

fn described_fields(message: &DynamicMessage) -> Value {
    let number = |name: &str| match message.get_field_by_name(name).as_deref() {
        Some(prost_reflect::Value::I64(number)) => *number as f64,
        Some(prost_reflect::Value::I32(number)) => f64::from(*number),
        _ => 0.0,
    };
    let descriptor = message.descriptor();
    if matches!(descriptor.full_name(), "google.protobuf.Duration" | "google.protobuf.Timestamp") {
        return Value::from(number("seconds") + number("nanos") / 1e9);
    }
    let mut fields = Map::new();
    for field in descriptor.fields() {
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        let value = match &*message.get_field(&field) {
            prost_reflect::Value::List(items) => {
                items.iter().map(|item| described_field(&field, item)).collect()
            }
            value => described_field(&field, value),
        };
        fields.insert(field.name().to_owned(), value);
    }
    Value::Object(fields)
}

fn described_field(field: &FieldDescriptor, value: &prost_reflect::Value) -> Value {
    match value {
        prost_reflect::Value::Bool(value) => Value::from(*value),
        prost_reflect::Value::I32(value) => Value::from(*value),
        prost_reflect::Value::I64(value) => Value::from(*value),
        prost_reflect::Value::F64(value) => Value::from(*value),
        prost_reflect::Value::String(value) => Value::from(value.clone()),
        prost_reflect::Value::Message(message) => described_fields(message),
        prost_reflect::Value::EnumNumber(0) => Value::Null,
        prost_reflect::Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(kind) => {
                let name = kind.get_value(*number).map(|value| value.name().to_owned()).unwrap_or_default();
                Value::from(name.trim_start_matches(&enum_prefix(&kind)))
            }
            _ => Value::from(*number),
        },
        other => Value::from(format!("{other:?}")),
    }
}

/// A message that is given.
pub(crate) fn outgoing(arguments: &Arguments, used: &[&str]) -> Result<OutgoingMessage, String> {
    let failed = |error: Error| error.to_string();
    let mut message = OutgoingMessage::default();
    for (key, value) in arguments.iter().filter(|(key, _)| !used.contains(&key.as_str())) {
        let text = || value.as_str().map(str::to_owned).ok_or_else(|| format!("{key} is a text"));
        message = match key.as_str() {
            "message" => {
                OutgoingMessage { message: OutgoingMessage::json(value).map_err(failed)?.message, ..message }
            }
            "message_text" => OutgoingMessage { message: text()?, ..message },
            "headers" => message.with_headers(value).map_err(failed)?,
            "headers_text" => message.with_headers_text(text()?),
            "delay" => message.with_delay(span(value)?),
            "visible_at" => message.with_visible_at(moment(value)?),
            "group" => message.with_group(text()?),
            "deduplication_id" => message.with_deduplication_id(text()?),
            other => return Err(format!("a message has no {other:?}")),
        };
    }
    Ok(message)
}

pub(crate) fn span(value: &Value) -> Result<Duration, String> {
    let seconds = value.as_f64().ok_or_else(|| format!("{value} is no span"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// A moment: seconds since 1970, or from now.
pub(crate) fn moment(value: &Value) -> Result<SystemTime, String> {
    let from_now = value.get("in_seconds").and_then(Value::as_f64);
    let (base, seconds) = match (from_now, value.as_f64()) {
        (Some(seconds), _) => (SystemTime::now(), seconds),
        (None, Some(seconds)) => (UNIX_EPOCH, seconds),
        (None, None) => return Err(format!("{value} is no moment")),
    };
    let distance = Duration::try_from_secs_f64(seconds.abs()).map_err(|error| error.to_string())?;
    Ok(if seconds < 0.0 { base - distance } else { base + distance })
}

fn seconds(moment: SystemTime) -> Value {
    Value::from(moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}

/// A message that came, as a value. `$live` tells where the message itself is kept.
pub(crate) fn received(message: &Message, place: usize) -> Result<Value, String> {
    let body: Value = message.json().map_err(|error| error.to_string())?;
    let headers: Option<Value> = message.headers().map_err(|error| error.to_string())?;
    Ok(json!({
        "$live": place,
        "queue": message.queue,
        "msg_id": message.msg_id,
        "read_ct": message.read_ct,
        "enqueued_at": seconds(message.enqueued_at),
        "last_read_at": message.last_read_at.map(seconds),
        "vt": seconds(message.vt),
        "message_text": message.message_text,
        "message_json": body.to_string(),
        "message": body,
        "headers": headers,
        "headers_text": message.headers_text,
        "receipt": message.receipt,
    }))
}

pub(crate) fn archived(archived: &ArchivedMessage, place: usize) -> Result<Value, String> {
    let mut value = received(&archived.message, place)?;
    value["archived_at"] = seconds(archived.archived_at);
    Ok(value)
}

/// An error, as a value.
pub(crate) fn failure(error: &Error) -> Value {
    json!({
        "code": code(error),
        "reason": error.reason(),
        "field": error.field(),
        "metadata": error.metadata(),
        "request_id": error.request_id(),
        "retry_delay": error.retry_delay().map(|delay| delay.as_secs_f64()),
        "outcome_unknown": error.outcome_unknown(),
        "message": error.message(),
    })
}

/// The name of gRPC's code, which in Rust is in camel case.
fn code(error: &Error) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", error.code()).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

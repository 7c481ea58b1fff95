//! Makes the client's code from the contract, without protoc: messages and stubs, and in `calls.rs` what the thin
//! layer needs to know of each call, with a setter for each of its options.

use std::collections::{HashMap, HashSet};
use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const PROTOS: [&str; 6] = [
    "pgmq/v1/admin_service.proto",
    "pgmq/v1/error.proto",
    "pgmq/v1/message.proto",
    "pgmq/v1/queue_service.proto",
    "pgmq/v1/topic_service.proto",
    "pgmq/v1/transaction_service.proto",
];

/// Messages that a caller fills in and that are no request of a call.
const PARTS: [&str; 5] = ["OutgoingMessage", "QueuePolicy", "RetryBackoff", "Partitioning", "ArchiveFilter"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let calls = Contract::read(&descriptors)?.calls(&descriptors)?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("calls.rs"), calls)?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}

struct Contract {
    messages: HashMap<String, DescriptorProto>,
    /// The comments of fields, as "Message.field".
    comments: HashMap<String, String>,
    /// The calls that the service config lists as repeatable, as "pgmq.v1.Service/Method".
    listed: HashSet<String>,
}

impl Contract {
    fn read(descriptors: &FileDescriptorSet) -> Result<Self, Box<dyn Error>> {
        let mut messages = HashMap::new();
        let mut comments = HashMap::new();
        for file in descriptors.file.iter().filter(|file| file.package() == "pgmq.v1") {
            for message in &file.message_type {
                messages.insert(message.name().to_owned(), message.clone());
            }
            for location in file.source_code_info.iter().flat_map(|info| &info.location) {
                // Field 4 of a file holds its messages, and field 2 of a message its fields.
                if let [4, message, 2, field] = location.path[..] {
                    let message = &file.message_type[usize::try_from(message)?];
                    let field = &message.field[usize::try_from(field)?];
                    let key = format!("{}.{}", message.name(), field.name());
                    comments.insert(key, location.leading_comments().to_owned());
                }
            }
        }
        let config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string("proto/pgmq/v1/service_config.json")?)?;
        let mut listed = HashSet::new();
        for method in config["methodConfig"].as_array().into_iter().flatten() {
            for name in method["name"].as_array().into_iter().flatten() {
                let text =
                    |key: &str| name[key].as_str().ok_or("a name in service_config.json is not complete");
                listed.insert(format!("{}/{}", text("service")?, text("method")?));
            }
        }
        Ok(Self { messages, comments, listed })
    }

    fn calls(&self, descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
        let mut code = String::new();
        for file in descriptors.file.iter().filter(|file| file.package() == "pgmq.v1") {
            for service in &file.service {
                for method in &service.method {
                    if method.server_streaming() || method.client_streaming() {
                        continue;
                    }
                    let path = format!("pgmq.v1.{}/{}", service.name(), method.name());
                    self.call(&mut code, &path, short(method.input_type()), short(method.output_type()))?;
                }
            }
        }
        for part in PARTS {
            writeln!(code, "impl crate::pb::{part} {{")?;
            self.setters(&mut code, part, "with_", "self", false)?;
            writeln!(code, "}}")?;
        }
        writeln!(code, "impl crate::Consume {{")?;
        self.setters(&mut code, "ConsumeStart", "", "self.start", false)?;
        writeln!(code, "}}")?;
        Ok(code)
    }

    fn call(&self, code: &mut String, path: &str, request: &str, reply: &str) -> Result<(), Box<dyn Error>> {
        let fields = |message: &str| self.messages[message].field.clone();
        let has = |name: &str| fields(request).iter().any(|field| field.name() == name);
        let sends_batch = fields(request).iter().any(|field| short(field.type_name()) == "OutgoingMessage");
        let repeatable = if self.listed.contains(path) {
            "true"
        } else if has("deduplication_id") {
            "!self.deduplication_id.is_empty()"
        } else if sends_batch {
            "self.messages.iter().all(|message| !message.deduplication_id.is_empty())"
        } else {
            "false"
        };
        let several = match (has("receipts"), has("msg_ids")) {
            (true, true) => "self.receipts.len() + self.msg_ids.len() > 1",
            (true, false) => "self.receipts.len() > 1",
            _ => "false",
        };
        let wait = if has("wait") { "crate::time::duration(self.wait)" } else { "None" };
        writeln!(
            code,
            "impl crate::call::Rpc for crate::pb::{request} {{
                type Reply = crate::pb::{reply};
                const PATH: &'static str = \"/{path}\";
                fn repeatable(&self) -> bool {{ {repeatable} }}
                fn settles_several(&self) -> bool {{ {several} }}
                fn wait(&self) -> Option<std::time::Duration> {{ {wait} }}
            }}"
        )?;
        let paged = has("page_token");
        if paged {
            writeln!(
                code,
                "impl crate::list::Paged for crate::pb::{request} {{
                    fn set_page_token(&mut self, token: String) {{ self.page_token = token; }}
                    fn next_page_token(reply: &Self::Reply) -> &str {{ &reply.next_page_token }}
                }}"
            )?;
        }
        let builder = if paged { "list::List" } else { "call::Call" };
        writeln!(code, "impl<A> crate::{builder}<crate::pb::{request}, A> {{")?;
        self.setters(code, request, "", "request", true)?;
        writeln!(code, "}}")?;
        Ok(())
    }

    /// Writes a method for each field that an option can set. `place` is what has the fields; in a call, which may hold an
    /// error in place of its request, it is what is passed to a closure.
    fn setters(
        &self,
        code: &mut String,
        message: &str,
        prefix: &str,
        place: &str,
        call: bool,
    ) -> Result<(), Box<dyn Error>> {
        let descriptor = &self.messages[message];
        let settles = descriptor.field.iter().any(|field| field.name() == "receipts");
        for field in &descriptor.field {
            let name = field.name();
            // What is not an option: addresses, contents, pages, and what the thin layer has methods of its own for.
            let argument = field.number() == 1 && !matches!(name, "page_size") && place != "self"
                || matches!(
                    name,
                    "message" | "messages" | "headers" | "receipts" | "page_token" | "update_mask"
                )
                || matches!(name, "routing_key" | "pattern" | "all_queues" | "flow_control")
                || settles && name == "msg_ids";
            if argument {
                continue;
            }
            let (taken, value) = setter_types(field);
            let value = match field.oneof_index {
                Some(index) if !field.proto3_optional() => {
                    let oneof = descriptor.oneof_decl[usize::try_from(index)?].name();
                    let value =
                        value.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(&value);
                    let variant =
                        format!("crate::pb::{}::{}::{}", snake(message), pascal(oneof), pascal(name));
                    (oneof, format!("Some({variant}({value}))"))
                }
                _ => (name, value),
            };
            for line in self.comments.get(&format!("{message}.{name}")).iter().flat_map(|text| text.lines()) {
                writeln!(code, "///{line}")?;
            }
            let (itself, change) = match call {
                true => ("self", format!("self.set(|request| request.{} = {})", value.0, value.1)),
                false => ("mut self", format!("{place}.{} = {};\nself", value.0, value.1)),
            };
            writeln!(
                code,
                "#[must_use]\npub fn {prefix}{name}({itself}, value: {taken}) -> Self {{\n{change}\n}}"
            )?;
        }
        Ok(())
    }
}

/// What a setter takes, and the expression that makes the field's value of it.
fn setter_types(field: &FieldDescriptorProto) -> (String, String) {
    let name = short(field.type_name());
    let (taken, value) = match field.r#type() {
        Type::String => ("impl Into<String>".to_owned(), "value.into()".to_owned()),
        Type::Bool => ("bool".to_owned(), "value".to_owned()),
        Type::Int32 => ("i32".to_owned(), "value".to_owned()),
        Type::Int64 => ("i64".to_owned(), "value".to_owned()),
        Type::Double => ("f64".to_owned(), "value".to_owned()),
        Type::Enum => (format!("crate::pb::{name}"), "value.into()".to_owned()),
        Type::Message if name == "Duration" => {
            ("std::time::Duration".to_owned(), "Some(crate::time::span(value))".to_owned())
        }
        Type::Message if name == "Timestamp" => {
            ("std::time::SystemTime".to_owned(), "Some(value.into())".to_owned())
        }
        Type::Message => (format!("crate::pb::{name}"), "Some(value)".to_owned()),
        other => panic!("no setter is known for {}, a {other:?}", field.name()),
    };
    if field.label() == Label::Repeated {
        return (format!("impl IntoIterator<Item = {taken}>"), "value.into_iter().collect()".to_owned());
    }
    if field.proto3_optional() {
        return (taken, format!("Some({value})"));
    }
    (taken, value)
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

fn pascal(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

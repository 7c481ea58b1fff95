//! `Produce` and `Consume`: what the load generator needs of their frozen messages.

use prost::{Enumeration, Message as ProstMessage, Oneof};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{Closing, CommandError, ItemResult, Message, OutgoingMessage};

/// One frame of messages for one queue.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct ProduceRequest {
    /// The queue.
    #[prost(string, tag = "1")]
    pub queue: String,
    /// The number of its first message.
    #[prost(uint64, tag = "2")]
    pub first_sequence: u64,
    /// The messages.
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<OutgoingMessage>,
}

/// Why a message of a frame was not stored.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct ProduceFailure {
    /// Its position in the frame.
    #[prost(int32, tag = "1")]
    pub index: i32,
    /// Why.
    #[prost(message, optional, tag = "2")]
    pub error: Option<CommandError>,
}

/// The answer to a frame.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct ProduceResponse {
    /// Which frame.
    #[prost(uint64, tag = "1")]
    pub first_sequence: u64,
    /// One for each message, 0 where `failures` says why.
    #[prost(int64, repeated, tag = "2")]
    pub msg_ids: Vec<i64>,
    /// What was not stored.
    #[prost(message, repeated, tag = "4")]
    pub failures: Vec<ProduceFailure>,
}

/// Opens a stream of messages.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct ConsumeStart {
    /// The queue.
    #[prost(string, tag = "1")]
    pub queue: String,
    /// The most messages that the stream holds.
    #[prost(int32, tag = "5")]
    pub max_in_flight: i32,
}

/// What to do with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum SettleAction {
    /// Nothing that is known.
    Unspecified = 0,
    /// Delete them.
    Delete = 1,
}

/// Settles messages.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct Settle {
    /// Their receipts.
    #[prost(string, repeated, tag = "1")]
    pub receipts: Vec<String>,
    /// How.
    #[prost(enumeration = "SettleAction", tag = "2")]
    pub action: i32,
}

/// A command to a stream of messages.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct ConsumeRequest {
    /// Which answer belongs to it.
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    /// The command.
    #[prost(oneof = "consume_request::Command", tags = "2, 3")]
    pub command: Option<consume_request::Command>,
}

/// Commands to a stream of messages.
pub mod consume_request {
    use super::{ConsumeStart, Oneof, Settle};

    /// A command.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Command {
        /// The first one.
        #[prost(message, tag = "2")]
        Start(ConsumeStart),
        /// Settle messages.
        #[prost(message, tag = "3")]
        Settle(Settle),
    }
}

/// The answer to a command.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct CommandResult {
    /// Which command.
    #[prost(uint64, tag = "1")]
    pub request_id: u64,
    /// One for each receipt.
    #[prost(message, repeated, tag = "2")]
    pub results: Vec<ItemResult>,
    /// Why the command failed.
    #[prost(message, optional, tag = "3")]
    pub error: Option<CommandError>,
}

/// What a stream of messages says.
#[derive(Clone, PartialEq, ProstMessage)]
pub struct ConsumeResponse {
    /// Messages.
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<Message>,
    /// Its end is near.
    #[prost(message, optional, tag = "4")]
    pub closing: Option<Closing>,
    /// Answers to commands.
    #[prost(message, repeated, tag = "5")]
    pub command_results: Vec<CommandResult>,
}

/// Calls `Produce`.
pub async fn produce(
    channel: Channel,
    frames: impl Stream<Item = ProduceRequest> + Send + 'static,
) -> Result<Streaming<ProduceResponse>, Status> {
    call(channel, "/pgmq.v1.QueueService/Produce", frames).await
}

/// Calls `Consume`.
pub async fn consume(
    channel: Channel,
    commands: impl Stream<Item = ConsumeRequest> + Send + 'static,
) -> Result<Streaming<ConsumeResponse>, Status> {
    call(channel, "/pgmq.v1.QueueService/Consume", commands).await
}

async fn call<Q, A>(
    channel: Channel,
    path: &'static str,
    requests: impl Stream<Item = Q> + Send + 'static,
) -> Result<Streaming<A>, Status>
where
    Q: ProstMessage + 'static,
    A: ProstMessage + Default + 'static,
{
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = client.streaming(Request::new(requests), PathAndQuery::from_static(path), codec).await?;
    Ok(answer.into_inner())
}

//! Calls below the generated clients: any RPC by its request, any bytes, any HTTP/2 body.

use std::convert::Infallible;
use std::fmt::Debug;

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderValue, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pgmq_grpc::proto::v1::queue_service_client::QueueServiceClient;
use pgmq_grpc::proto::v1::*;
use prost::Message;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Server;

/// A request message, which belongs to one RPC.
pub(crate) trait Rpc: Message + Debug {
    /// The RPC's path.
    const PATH: &'static str;
}

macro_rules! rpcs {
    ($($request:ident => $service:ident / $method:ident),* $(,)?) => {
        $(impl Rpc for $request {
            const PATH: &'static str = concat!("/pgmq.v1.", stringify!($service), "/", stringify!($method));
        })*
    };
}

rpcs! {
    CreateQueueRequest => QueueService/CreateQueue,
    GetQueueRequest => QueueService/GetQueue,
    ListQueuesRequest => QueueService/ListQueues,
    DropQueueRequest => QueueService/DropQueue,
    PurgeQueueRequest => QueueService/PurgeQueue,
    GetQueueMetricsRequest => QueueService/GetQueueMetrics,
    ListQueueMetricsRequest => QueueService/ListQueueMetrics,
    SendRequest => QueueService/Send,
    SendBatchRequest => QueueService/SendBatch,
    ReadBatchRequest => QueueService/ReadBatch,
    ReadRequest => QueueService/Read,
    PopRequest => QueueService/Pop,
    DeleteRequest => QueueService/Delete,
    ArchiveRequest => QueueService/Archive,
    ReleaseRequest => QueueService/Release,
    DeadLetterRequest => QueueService/DeadLetter,
    SetVisibilityTimeoutRequest => QueueService/SetVisibilityTimeout,
    TransactRequest => QueueService/Transact,
    ValidateNameRequest => QueueService/ValidateName,
    GetServerInfoRequest => QueueService/GetServerInfo,
    BindTopicRequest => TopicService/BindTopic,
    UnbindTopicRequest => TopicService/UnbindTopic,
    ListTopicBindingsRequest => TopicService/ListTopicBindings,
    TestRoutingRequest => TopicService/TestRouting,
    SendTopicRequest => TopicService/SendTopic,
    SendTopicBatchRequest => TopicService/SendTopicBatch,
    InstallPgmqRequest => AdminService/InstallPgmq,
    SetQueueLayoutRequest => AdminService/SetQueueLayout,
    ListMessagesRequest => AdminService/ListMessages,
    ListArchivedMessagesRequest => AdminService/ListArchivedMessages,
    DeleteArchivedMessagesRequest => AdminService/DeleteArchivedMessages,
    ReplayArchivedMessagesRequest => AdminService/ReplayArchivedMessages,
    RedriveMessagesRequest => AdminService/RedriveMessages,
    CreateFifoIndexRequest => AdminService/CreateFifoIndex,
    ConvertArchivePartitionedRequest => AdminService/ConvertArchivePartitioned,
    EnableNotificationsRequest => AdminService/EnableNotifications,
    DisableNotificationsRequest => AdminService/DisableNotifications,
    UpdateNotificationsRequest => AdminService/UpdateNotifications,
    UpdateQueueRequest => AdminService/UpdateQueue,
    ListClientsRequest => AdminService/ListClients,
    ListNotificationsRequest => AdminService/ListNotifications,
}

/// A call of any RPC: its path and the bytes of its request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) bytes: Bytes,
    /// The request, readable.
    pub(crate) text: String,
}

/// The call of a request.
pub(crate) fn call<R: Rpc>(request: R) -> Call {
    let mut text = format!("{} {request:?}", R::PATH);
    text.truncate(text.floor_char_boundary(400));
    Call { path: R::PATH.to_owned(), bytes: request.encode_to_vec().into(), text }
}

impl Call {
    /// A call of an RPC with bytes that may be anything.
    pub(crate) fn of_bytes(path: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { path: path.to_owned(), text: format!("{path} {bytes:?}"), bytes }
    }

    /// Makes it. A stream's first reply counts as the answer.
    pub(crate) async fn make(&self, channel: &Channel) -> Result<Bytes, Status> {
        self.make_with(channel, &[]).await
    }

    /// Makes it with metadata.
    pub(crate) async fn make_with(
        &self,
        channel: &Channel,
        metadata: &[(&'static str, &str)],
    ) -> Result<Bytes, Status> {
        let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
        grpc.ready().await.expect("a connection");
        let mut request = Request::new(self.bytes.clone());
        for &(key, value) in metadata {
            request.metadata_mut().insert(key, value.parse().expect("an ASCII value"));
        }
        let path = self.path.parse().expect("a path");
        let mut replies = grpc.server_streaming(request, path, AnyBytes).await?.into_inner();
        replies.message().await.map(Option::unwrap_or_default)
    }

    /// Makes it, and takes all replies until the call's end, which is its answer. For calls that end.
    pub(crate) async fn make_to_its_end(&self, channel: &Channel) -> Result<(), Status> {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.expect("a connection");
        let path = self.path.parse().expect("a path");
        let request = Request::new(self.bytes.clone());
        let mut replies = grpc.server_streaming(request, path, AnyBytes).await?.into_inner();
        while replies.message().await?.is_some() {}
        Ok(())
    }
}

/// Messages as the bytes they are.
struct AnyBytes;

impl Codec for AnyBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AnyBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(bytes);
        Ok(())
    }
}

impl Decoder for AnyBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// A client of HTTP/2 without tonic's own timeouts, so that the server's answer at a deadline is seen.
pub(crate) fn patient(server: &Server) -> QueueServiceClient<HttpClient<HttpConnector, Body>> {
    let client = HttpClient::builder(TokioExecutor::new()).http2_only(true).build_http();
    QueueServiceClient::with_origin(client, uri(server, ""))
}

/// What an HTTP/2 request with these headers and this body is answered: the status, from wherever it stands.
pub(crate) async fn post(server: &Server, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Status {
    post_body(server, path, headers, Full::new(Bytes::from(body))).await
}

/// The same with a body that may come piece by piece.
pub(crate) async fn post_body<B>(server: &Server, path: &str, headers: &[(&str, &str)], body: B) -> Status
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let client = HttpClient::builder(TokioExecutor::new()).http2_only(true).build_http();
    let mut request = http::Request::post(uri(server, path));
    for (key, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(headers) {
        request = request.header(*key, *value);
    }
    let request = request.body(body).expect("a request");
    let response = client.request(request).await.expect("a response");
    let headers = response.headers().clone();
    let body = response.into_body().collect().await.expect("a body");
    let trailers: HeaderMap<HeaderValue> = body.trailers().cloned().unwrap_or(headers);
    Status::from_header_map(&trailers).expect("a status")
}

/// Bytes as one gRPC message on the wire: compressed or not, its length, itself.
pub(crate) fn frame(compressed: bool, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a short message");
    let mut frame = vec![u8::from(compressed)];
    frame.extend(length.to_be_bytes());
    frame.extend(bytes);
    frame
}

fn uri(server: &Server, path: &str) -> Uri {
    format!("http://{}{path}", server.address).parse().expect("a uri")
}

//! The generated clients, and the calls that most tests make.

use pgmq_grpc::proto::v1::admin_service_client::AdminServiceClient;
use pgmq_grpc::proto::v1::queue_service_client::QueueServiceClient;
use pgmq_grpc::proto::v1::topic_service_client::TopicServiceClient;
use pgmq_grpc::proto::v1::transaction_service_client::TransactionServiceClient;
use pgmq_grpc::proto::v1::{
    CreateQueueRequest, DeleteRequest, Message, Outcome, OutgoingMessage, ReadBatchRequest, SendBatchRequest,
    SendRequest,
};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::{PATIENCE, Server};

/// A client of one server over one connection.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) queue: QueueServiceClient<Channel>,
    pub(crate) topic: TopicServiceClient<Channel>,
    pub(crate) admin: AdminServiceClient<Channel>,
    pub(crate) transaction: TransactionServiceClient<Channel>,
    pub(crate) channel: Channel,
}

impl Client {
    /// Connects over TCP.
    pub(crate) async fn connect(server: &Server) -> Self {
        Self::connect_to(&format!("http://{}", server.address)).await
    }

    /// Connects to a URI, which may be `unix:`.
    pub(crate) async fn connect_to(uri: &str) -> Self {
        Self::connect_by(Endpoint::from_shared(uri.to_owned()).expect("a uri")).await
    }

    /// Connects as a client that lets the server send little ahead of what it takes.
    pub(crate) async fn connect_hesitantly(server: &Server) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).expect("a uri");
        let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        Self::connect_by(endpoint).await
    }

    async fn connect_by(endpoint: Endpoint) -> Self {
        let channel = endpoint.connect().await.expect("a connection");
        const LIMIT: usize = 64 << 20;
        Self {
            queue: QueueServiceClient::new(channel.clone()).max_decoding_message_size(LIMIT),
            topic: TopicServiceClient::new(channel.clone()).max_decoding_message_size(LIMIT),
            admin: AdminServiceClient::new(channel.clone()).max_decoding_message_size(LIMIT),
            transaction: TransactionServiceClient::new(channel.clone()).max_decoding_message_size(LIMIT),
            channel,
        }
    }

    /// Makes a standard queue.
    pub(crate) async fn create(&mut self, queue: &str) {
        let mut request = Request::new(CreateQueueRequest { queue: queue.to_owned(), ..Default::default() });
        // Whatever the server's default is: this is not what a test is about.
        request.set_timeout(PATIENCE);
        self.queue.create_queue(request).await.expect("a queue");
    }

    /// Sends one message.
    pub(crate) async fn send(&mut self, queue: &str, message: &str) -> i64 {
        let request =
            SendRequest { queue: queue.to_owned(), message: message.to_owned(), ..Default::default() };
        self.queue.send(request).await.expect("a send").into_inner().msg_id
    }

    /// Sends messages in one batch.
    pub(crate) async fn send_all(&mut self, queue: &str, messages: &[&str]) -> Vec<i64> {
        let messages = messages.iter().map(|message| outgoing(message)).collect();
        let request = SendBatchRequest { queue: queue.to_owned(), messages };
        let sent = self.queue.send_batch(request).await.expect("a batch").into_inner();
        sent.results.iter().map(|result| result.msg_id).collect()
    }

    /// Sends one message of a FIFO group.
    pub(crate) async fn send_to_group(&mut self, queue: &str, group: &str, message: &str) -> i64 {
        let request = SendRequest {
            queue: queue.to_owned(),
            message: message.to_owned(),
            group: group.to_owned(),
            ..Default::default()
        };
        self.queue.send(request).await.expect("a send").into_inner().msg_id
    }

    /// Reads at most so many messages at once, hidden for 30 s.
    pub(crate) async fn read(&mut self, queue: &str, max_messages: i32) -> Vec<Message> {
        let request = ReadBatchRequest { queue: queue.to_owned(), max_messages, ..Default::default() };
        self.read_as(request).await
    }

    /// Reads as a request says.
    pub(crate) async fn read_as(&mut self, request: ReadBatchRequest) -> Vec<Message> {
        self.queue.read_batch(request).await.expect("a read").into_inner().messages
    }

    /// Reads the one message that is there.
    pub(crate) async fn read_one(&mut self, queue: &str) -> Message {
        let mut messages = self.read(queue, 1).await;
        messages.pop().expect("a message")
    }

    /// Deletes by receipts.
    pub(crate) async fn delete(&mut self, queue: &str, receipts: &[&str]) -> Vec<Outcome> {
        let receipts = receipts.iter().map(|&receipt| receipt.to_owned()).collect();
        let request = DeleteRequest { queue: queue.to_owned(), receipts, ..Default::default() };
        let deleted = self.queue.delete(request).await.expect("a delete").into_inner();
        deleted.results.iter().map(pgmq_grpc::proto::v1::ItemResult::outcome).collect()
    }
}

/// A message with nothing but a body.
pub(crate) fn outgoing(message: &str) -> OutgoingMessage {
    OutgoingMessage { message: message.to_owned(), ..Default::default() }
}

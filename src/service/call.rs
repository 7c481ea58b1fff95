//! The one way of every unary RPC: request → operation → output → reply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::convert::{Fields, FromRequest};
use super::request_id::CLIENT_METADATA;
use super::{RequestId, to_status};
use crate::domain::client::parse_name;
use crate::domain::{Caller, Deadline, Error, Invalid, Kind};
use crate::queue::{Broker, Operation};

/// Metadata in which a caller may repeat the queue, so that a mesh can route and limit by it.
const QUEUE_METADATA: &str = "pgmq-queue";

/// What the outermost layer knows of a call, among the extensions of its request.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// The request's id.
    pub request_id: RequestId,
    /// The address of the call's other end.
    pub peer: Arc<str>,
    /// When the caller stops waiting, if it has said so.
    pub deadline: Option<Deadline>,
}

/// The calls that are merged with others and answered at once, so that any number of them comes from busy clients.
const SHORT: [&str; 6] = ["Send", "Delete", "Archive", "Release", "DeadLetter", "SetVisibilityTimeout"];

/// Whether the path is one of a merged call.
pub fn is_short(path: &str) -> bool {
    let method = path.strip_prefix("/pgmq.v1.QueueService/");
    method.is_some_and(|method| SHORT.contains(&method))
}

/// The calls whose requests are streams, by the ends of their paths.
const STREAMS: [&str; 4] = ["/Produce", "/Consume", "/OpenTransaction", "/ServerReflectionInfo"];

/// Whether the path is one of a call whose request is a stream of commands.
pub fn reads_commands(path: &str) -> bool {
    STREAMS.iter().any(|end| path.ends_with(end))
}

/// Serves all RPCs.
#[derive(Clone)]
pub struct Service {
    pub(super) broker: Arc<Broker>,
    default_deadline: Duration,
}

impl Service {
    /// Serves over a broker; calls whose caller sets no deadline get the default one.
    pub fn new(broker: Arc<Broker>, default_deadline: Duration) -> Self {
        Self { broker, default_deadline }
    }

    /// Converts a request, runs its operation, converts the output.
    pub(super) async fn call<O, Req, Res>(&self, request: Request<Req>) -> Result<Response<Res>, Status>
    where
        O: Operation + FromRequest<Req>,
        Res: From<O::Output>,
    {
        let request_id = request_id(&request);
        let deadline = self.deadline(&request, O::DEFAULT_DEADLINE.unwrap_or(self.default_deadline));
        let known = match O::FOLLOWS_POLICY {
            true => self.broker.learn_policies(deadline).await,
            false => Ok(()),
        };
        let answer = match known.and_then(|()| self.parse::<O, Req>(request)) {
            Ok(operation) => self.broker.run(operation, deadline).await,
            Err(error) => Err(error),
        };
        answer.map(|output| Response::new(output.into())).map_err(|error| to_status(&error, &request_id))
    }

    /// Converts a request into its operation, or names every field that is wrong.
    pub(super) fn parse<O: FromRequest<Req>, Req>(&self, request: Request<Req>) -> Result<O, Error> {
        let caller = caller(&request);
        let (metadata, _, request) = request.into_parts();
        O::uses(&request, &mut |role, queue| self.broker.clients.called(&caller, role, queue));
        let mut fields = Fields::default();
        check_client(&mut fields, &metadata);
        if let (Some(named), Some(queue)) = (metadata.get(QUEUE_METADATA), O::queue(&request)) {
            check_named(&mut fields, named.as_bytes(), queue);
        }
        let operation = O::parse(request, &self.broker.rules, &mut fields);
        fields.finish(operation)
    }

    /// The caller's deadline, or the default.
    pub(super) fn deadline<Req>(&self, request: &Request<Req>, default: Duration) -> Deadline {
        let own = request.extensions().get::<CallContext>().and_then(|context| context.deadline);
        own.unwrap_or_else(|| Deadline::within(default))
    }
}

/// Who makes a call.
pub(super) fn caller<Req>(request: &Request<Req>) -> Caller {
    let context = request.extensions().get::<CallContext>();
    let name = context.and_then(|context| context.request_id.client()).cloned();
    let address = context.map_or_else(|| "".into(), |context| Arc::clone(&context.peer));
    Caller { name, address }
}

/// Refuses a name that a caller may not give itself.
fn check_client(fields: &mut Fields, metadata: &MetadataMap) {
    if let Some(name) = metadata.get(CLIENT_METADATA) {
        fields.take(CLIENT_METADATA, parse_name(name.as_bytes()));
    }
}

/// Who opens a stream.
///
/// # Errors
/// `InvalidClientName`.
pub(super) fn checked_caller<Req>(request: &Request<Req>) -> Result<Caller, Error> {
    let mut fields = Fields::default();
    check_client(&mut fields, request.metadata());
    fields.finish(Some(caller(request)))
}

/// The queue that a call's metadata names, if it does.
pub(super) fn named_queue<Req>(request: &Request<Req>) -> Option<Bytes> {
    request.metadata().get(QUEUE_METADATA).map(|named| Bytes::copy_from_slice(named.as_bytes()))
}

/// Refuses a queue that differs from the one that the call's metadata names.
pub(super) fn check_named(fields: &mut Fields, named: &[u8], queue: &str) {
    if named != queue.as_bytes() {
        let description = format!("metadata {QUEUE_METADATA} names another queue than the request");
        fields.refuse("queue", Invalid::new(Kind::MetadataMismatch, description));
    }
}

/// The request's id, which the server's outermost layer has set.
pub(super) fn request_id<Req>(request: &Request<Req>) -> RequestId {
    let known = request.extensions().get::<CallContext>().map(|context| context.request_id.clone());
    known.unwrap_or_else(|| RequestId::of(&http::HeaderMap::new()))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::proto::DESCRIPTORS;

    /// The paths of the contract's methods, and whether their requests are streams.
    fn methods() -> Vec<(String, bool)> {
        let files = FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors").file;
        let services = files.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
        services
            .flat_map(|(file, service)| {
                let prefix = format!("/{}.{}/", file.package(), service.name());
                service
                    .method
                    .iter()
                    .map(move |method| (format!("{prefix}{}", method.name()), method.client_streaming()))
            })
            .collect()
    }

    #[test]
    fn short_calls_are_methods_of_the_contract() {
        assert_eq!(methods().iter().filter(|(path, _)| is_short(path)).count(), SHORT.len());
        assert!(methods().len() > SHORT.len());
    }

    #[test]
    fn the_calls_that_read_commands_are_those_whose_requests_are_streams() {
        for (path, is_stream) in methods() {
            assert_eq!(reads_commands(&path), is_stream, "{path}");
        }
    }
}

//! All services of a server, with their limits.

use std::convert::Infallible;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;
use tonic::service::Routes as TonicRoutes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::Service as _;

use super::ServeError;
use super::receiving::Received;
use crate::proto::DESCRIPTORS;
use crate::proto::v1::admin_service_server::AdminServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;
use crate::proto::v1::topic_service_server::TopicServiceServer;
use crate::proto::v1::transaction_service_server::TransactionServiceServer;
use crate::service::{MAX_REQUEST_BYTES, Service};

const MAX_REPLY_BYTES: usize = 4 << 20;

/// The services. The queues' own is asked without a way through the others' router, which costs as much as a short
/// call's own work.
#[derive(Clone)]
pub(super) struct Routes {
    queues: QueueServiceServer<Service>,
    others: TonicRoutes,
}

impl Routes {
    /// Answers a call.
    pub(super) fn answer(
        &self,
        request: Request<Received<Incoming>>,
    ) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        let path = request.uri().path().strip_prefix('/');
        let method = path.and_then(|path| path.strip_prefix(<QueueServiceServer<Service>>::NAME));
        match method.is_some_and(|method| method.starts_with('/')) {
            true => self.queues.clone().call(request),
            false => Box::pin(self.others.clone().call(request)),
        }
    }
}

/// Sets a service's limits, and takes compressed requests.
macro_rules! limited {
    ($service:expr) => {
        $service
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_REPLY_BYTES)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
    };
}

/// Puts together the services, health, and reflection in both versions that clients ask for.
pub(super) fn build(service: Service, health: HealthServer<impl Health>) -> Result<Routes, ServeError> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The details of errors, so that tools can show them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let queues = limited!(QueueServiceServer::new(service.clone()));
    let others = TonicRoutes::new(limited!(TopicServiceServer::new(service.clone())))
        .add_service(limited!(AdminServiceServer::new(service.clone())))
        .add_service(limited!(TransactionServiceServer::new(service)))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare();
    Ok(Routes { queues, others })
}

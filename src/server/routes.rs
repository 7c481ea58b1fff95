//! All services of a server, with their limits.

use tonic::codec::CompressionEncoding;
use tonic::service::Routes as TonicRoutes;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::ServeError;
use super::layer::Around;
use crate::proto::DESCRIPTORS;
use crate::proto::v1::admin_service_server::AdminServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;
use crate::proto::v1::topic_service_server::TopicServiceServer;
use crate::proto::v1::transaction_service_server::TransactionServiceServer;
use crate::service::{MAX_REQUEST_BYTES, Service};

const MAX_REPLY_BYTES: usize = 4 << 20;

/// The services behind their common layer.
pub(super) type Routes = Around<TonicRoutes>;

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
    let routes = TonicRoutes::new(limited!(QueueServiceServer::new(service.clone())))
        .add_service(limited!(TopicServiceServer::new(service.clone())))
        .add_service(limited!(AdminServiceServer::new(service.clone())))
        .add_service(limited!(TransactionServiceServer::new(service)))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare();
    Ok(Around::new(routes))
}

//! How a client comes to its connection.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::service::{Interceptor, interceptor::InterceptorLayer};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tower::{Layer, ServiceExt as _, util::BoxCloneSyncService};

use crate::{Client, Error};

/// What calls go through: the connection and the layers around it.
pub type Service =
    BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, Status>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A service of tower that carries calls: a channel of tonic, or one in layers. Implemented for all of them.
pub trait Transport:
    tower::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<<Self as Transport>::Body>,
        Error: Into<BoxError>,
        Future: Send + 'static,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of its responses.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B> Transport for S
where
    S: tower::Service<http::Request<tonic::body::Body>, Response = http::Response<B>>,
    S: Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}

/// How a client connects and calls. Made by [`Client::builder`].
#[must_use = "nothing is connected before `connect`"]
pub struct Builder {
    timeout: Duration,
    connect_timeout: Duration,
    metadata: MetadataMap,
    layers: Vec<Box<dyn FnOnce(Service) -> Service + Send>>,
    error: Option<Error>,
    #[cfg(feature = "tls")]
    tls: Option<tonic::transport::ClientTlsConfig>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            metadata: MetadataMap::new(),
            layers: Vec::new(),
            error: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl Builder {
    /// The name under which the server lists and logs this client: printable ASCII, at most 128 bytes.
    pub fn name(self, name: &str) -> Self {
        self.metadata("pgmq-client", name)
    }

    /// How long a unary call takes at most, repeats included, unless it says otherwise. 30 seconds without this; a read that
    /// waits has that much more.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long an attempt to connect takes at most. 10 seconds without this.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Metadata of every call, such as credentials that do not change. For those that do, see
    /// [`interceptor`](Self::interceptor), and [`layer`](Self::layer) where they have to be awaited.
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        match (key.parse::<AsciiMetadataKey>(), value.parse::<AsciiMetadataValue>()) {
            (Ok(key), Ok(value)) => {
                self.metadata.insert(key, value);
            }
            _ => {
                let text = format!("the metadata {key:?} is not ASCII that a header may hold");
                self.error = Some(Error::local(Code::InvalidArgument, text));
            }
        }
        self
    }

    /// Connects by TLS: with the system's roots, or as told.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: tonic::transport::ClientTlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Passes each call through a function or an interceptor of tonic, which can add metadata and refuse the call.
    pub fn interceptor<I>(self, interceptor: I) -> Self
    where
        I: Interceptor + Clone + Send + Sync + 'static,
    {
        self.layer(InterceptorLayer::new(interceptor))
    }

    /// Passes each call through a layer of tower, such as one of OpenTelemetry. What is given last is outermost.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Service, Service: Transport> + Send + 'static,
    {
        self.layers.push(Box::new(move |service| boxed(layer.layer(service))));
        self
    }

    /// A client of the server at the target: `host:port`, `unix:/path` or `dns:///name:port`. Without one, the environment's
    /// `PGMQ_GRPC_TARGET` counts, and else `127.0.0.1:50051`.
    ///
    /// It connects with its first call, and again whenever it has to.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` for a target, metadata or TLS settings that make no sense.
    ///
    /// # Panics
    ///
    /// Outside of a runtime of tokio, in which the connection lives.
    pub fn connect<'a>(self, target: impl Into<Option<&'a str>>) -> Result<Client, Error> {
        let target = match target.into() {
            Some(target) => target.to_owned(),
            None => std::env::var("PGMQ_GRPC_TARGET").unwrap_or_else(|_| "127.0.0.1:50051".to_owned()),
        };
        let invalid = |error: tonic::transport::Error| {
            let cause =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::local(Code::InvalidArgument, format!("the target {target:?} is not usable: {cause}"))
        };
        let address = self.address(&target);
        check(&target, &address)?;
        let endpoint = Endpoint::from_shared(address)
            .map_err(invalid)?
            .connect_timeout(self.connect_timeout)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        #[cfg(feature = "tls")]
        let endpoint = match &self.tls {
            Some(tls) => endpoint.tls_config(tls.clone()).map_err(invalid)?,
            None => endpoint,
        };
        self.over(endpoint.connect_lazy())
    }

    /// A client whose calls go to a service: a channel with settings of one's own, one over several servers, or none at all.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` for metadata that makes no sense.
    pub fn over(self, service: impl Transport) -> Result<Client, Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let fixed = self.metadata;
        let add = InterceptorLayer::new(move |mut request: Request<()>| {
            for pair in fixed.iter() {
                if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = pair {
                    request.metadata_mut().insert(key, value.clone());
                }
            }
            Ok(request)
        });
        let service = self.layers.into_iter().fold(boxed(service), |service, layer| layer(service));
        Ok(Client::new(boxed(add.layer(service)), self.timeout))
    }

    fn address(&self, target: &str) -> String {
        #[cfg(feature = "tls")]
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        #[cfg(not(feature = "tls"))]
        let scheme = "http";
        let target = target.strip_prefix("dns:///").or_else(|| target.strip_prefix("dns:")).unwrap_or(target);
        if target.starts_with("unix:") || target.contains("://") {
            return target.to_owned();
        }
        format!("{scheme}://{target}")
    }
}

/// Refuses an address without a port, for which there is no good guess.
fn check(target: &str, address: &str) -> Result<(), Error> {
    if address.starts_with("unix:") {
        return Ok(());
    }
    let uri: Option<http::Uri> = address.parse().ok();
    match uri.as_ref().map(|uri| (uri.host(), uri.port_u16())) {
        Some((Some(host), Some(1..))) if !host.is_empty() => Ok(()),
        _ => {
            let text = format!(
                "the target {target:?} is not usable: a target is host:port, unix:/path or dns:///name:port"
            );
            Err(Error::local(Code::InvalidArgument, text))
        }
    }
}

fn boxed<S: Transport>(service: S) -> Service {
    let service = service
        .map_err(|error: S::Error| Status::from_error(error.into()))
        .map_response(|response: http::Response<_>| response.map(tonic::body::Body::new));
    BoxCloneSyncService::new(service)
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

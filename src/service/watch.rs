//! The replies of `Watch`.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tonic::{Request, Status};

use super::convert::watch_response;
use super::{RequestId, Service, to_status};
use crate::domain::{Deadline, Error};
use crate::proto::v1::{StreamStarted, WatchRequest, WatchResponse};
use crate::queue::{WatchOptions, WatchStream};

impl Service {
    pub(super) async fn open_watch(
        &self,
        request: Request<WatchRequest>,
        request_id: &RequestId,
        deadline: Deadline,
    ) -> Result<WatchReplies, Error> {
        let options = self.parse::<WatchOptions, _>(request)?;
        let started = StreamStarted {
            stream_id: request_id.to_string(),
            replica: self.broker.replica.clone(),
            heartbeat_interval: prost_types::Duration::try_from(options.heartbeat_interval).ok(),
            ..Default::default()
        };
        let stream = WatchStream::open(&self.broker, options, deadline).await?;
        Ok(WatchReplies { started: Some(started), stream, request_id: request_id.clone() })
    }
}

/// The replies of one `Watch`: `started` first, then what the stream gives.
pub struct WatchReplies {
    started: Option<StreamStarted>,
    stream: WatchStream,
    request_id: RequestId,
}

impl Stream for WatchReplies {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(started) = self.started.take() {
            return Poll::Ready(Some(Ok(WatchResponse { started: Some(started), ..Default::default() })));
        }
        self.stream.poll_next(context).map(|item| {
            item.map(|item| item.map(watch_response).map_err(|error| to_status(&error, &self.request_id)))
        })
    }
}

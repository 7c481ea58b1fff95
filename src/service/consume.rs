//! `Consume`: its commands into the queue's words, and what the stream has ready into replies.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tonic::{Request, Status, Streaming};

use super::call::{checked_caller, named_queue, request_id};
use super::convert::{Commands, consume_response};
use super::stream::{NO_DEADLINE, stream_started};
use super::{RequestId, Service, to_status};
use crate::domain::Result;
use crate::proto::v1::{ConsumeRequest, ConsumeResponse};
use crate::queue::{ConsumeStream, Piece};

/// The replies of one `Consume`.
pub struct ConsumeReplies {
    stream: ConsumeStream,
    replica: String,
    request_id: RequestId,
}

impl Service {
    /// Opens a stream, which waits for its first command.
    ///
    /// # Errors
    /// `InvalidClientName`; whatever keeps the policies unknown.
    pub(super) async fn open_consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<ConsumeReplies> {
        let request_id = request_id(&request);
        let caller = checked_caller(&request)?;
        let deadline = self.deadline(&request, NO_DEADLINE);
        let named = named_queue(&request);
        self.broker.learn_policies(deadline).await?;
        let commands = Commands::new(request.into_inner(), named, self.broker.rules.clone());
        let stream = ConsumeStream::open(&self.broker, caller, commands, deadline);
        Ok(ConsumeReplies { stream, replica: self.broker.replica.clone(), request_id })
    }
}

impl ConsumeReplies {
    fn response(&self, mut piece: Piece) -> ConsumeResponse {
        let started =
            piece.started.take().map(|started| stream_started(&self.request_id, &self.replica, started));
        ConsumeResponse { started, ..consume_response(piece, &self.request_id) }
    }
}

impl Stream for ConsumeReplies {
    type Item = Result<ConsumeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next(context).map(|piece| {
            let piece = piece?;
            // From here on the messages of a piece are the client's.
            Some(piece.map(|piece| self.response(piece)).map_err(|error| to_status(&error, &self.request_id)))
        })
    }
}

//! Several operations in one transaction.

use crate::Call;
use crate::call::Rpc;
use crate::message::new_id;
use crate::pb::{self, transact_operation::Operation};

/// A request that can be an operation of a transaction.
pub trait Transactable: Rpc {
    /// The operation.
    fn into_operation(self) -> Operation;
}

macro_rules! transactable {
    ($($request:ident: $operation:ident),*) => { $(
        impl Transactable for pb::$request {
            fn into_operation(self) -> Operation {
                Operation::$operation(self)
            }
        }
    )* };
}

transactable!(
    SendRequest: Send,
    SendBatchRequest: SendBatch,
    SendTopicRequest: SendTopic,
    DeleteRequest: Delete,
    ArchiveRequest: Archive,
    ReleaseRequest: Release,
    DeadLetterRequest: DeadLetter,
    SetVisibilityTimeoutRequest: SetVisibilityTimeout
);

impl<A> Call<pb::TransactRequest, A> {
    /// Adds an operation: a send or a settle, as it would be awaited alone.
    pub fn with<Q: Transactable, B>(mut self, operation: Call<Q, B>) -> Self {
        match (&mut self.request, operation.request) {
            (Ok(request), Ok(operation)) => {
                let operation = Some(operation.into_operation());
                request.operations.push(pb::TransactOperation { operation });
            }
            (Ok(_), Err(error)) => self.request = Err(error),
            (Err(_), _) => {}
        }
        self
    }
}

macro_rules! idempotent {
    ($($request:ident),*) => { $(
        impl<A> Call<pb::$request, A> {
            /// Gives it a deduplication id, unless it has one: after a failure with an unknown outcome it is sent again, and
            /// applied once.
            pub fn idempotent(mut self) -> Self {
                self.set(|request| {
                    if request.deduplication_id.is_empty() {
                        request.deduplication_id = new_id();
                    }
                });
                self
            }
        }
    )* };
}

idempotent!(SendRequest, SendTopicRequest, TransactRequest);

macro_rules! idempotent_batch {
    ($($request:ident),*) => { $(
        impl<A> Call<pb::$request, A> {
            /// Gives each message a deduplication id, unless it has one: after a failure with an unknown outcome the batch is
            /// sent again, and stored once.
            pub fn idempotent(mut self) -> Self {
                self.set(|request| {
                    for message in &mut request.messages {
                        *message = std::mem::take(message).idempotent();
                    }
                });
                self
            }
        }
    )* };
}

idempotent_batch!(SendBatchRequest, SendTopicBatchRequest);

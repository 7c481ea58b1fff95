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
    ($($request:ident: $ids:expr;)*) => { $(
        impl<A> Call<pb::$request, A> {
            /// Gives a deduplication id to what has none: after a failure with an unknown outcome it is sent again, and applied
            /// once.
            pub fn idempotent(self) -> Self {
                let ids: fn(&mut pb::$request) -> Vec<&mut String> = $ids;
                self.set(|request| ids(request).into_iter().filter(|id| id.is_empty()).for_each(|id| *id = new_id()))
            }
        }
    )* };
}

idempotent! {
    SendRequest: |request| vec![&mut request.deduplication_id];
    SendTopicRequest: |request| vec![&mut request.deduplication_id];
    TransactRequest: |request| vec![&mut request.deduplication_id];
    SendBatchRequest: |request| request.messages.iter_mut().map(|message| &mut message.deduplication_id).collect();
    SendTopicBatchRequest: |request| request.messages.iter_mut().map(|message| &mut message.deduplication_id).collect();
}

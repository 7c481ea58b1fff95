// Code generated from proto/pgmq/v1/error.proto by run.sh proto. DO NOT EDIT.

package pgmq

// The reasons for which a call can fail; what each means in full stands in the contract, at ErrorReason.
const (
	// The queue name is not well-formed. Code INVALID_ARGUMENT.
	ReasonInvalidQueueName Reason = "INVALID_QUEUE_NAME"
	// A required field is empty or unset. Code INVALID_ARGUMENT.
	ReasonMissingField Reason = "MISSING_FIELD"
	// Fields are set that exclude each other. Code INVALID_ARGUMENT.
	ReasonConflictingFields Reason = "CONFLICTING_FIELDS"
	// The body of a message is not JSON text that the queue can hold. Code INVALID_ARGUMENT.
	ReasonInvalidJSON Reason = "INVALID_JSON"
	// The headers of a message are not acceptable. Code INVALID_ARGUMENT.
	ReasonInvalidHeaders Reason = "INVALID_HEADERS"
	// The body of a message is larger than the server takes. Code INVALID_ARGUMENT.
	ReasonMessageTooLarge Reason = "MESSAGE_TOO_LARGE"
	// A span of time is malformed or out of its range. Code INVALID_ARGUMENT.
	ReasonInvalidDuration Reason = "INVALID_DURATION"
	// A moment is malformed or too far ahead. Code INVALID_ARGUMENT.
	ReasonInvalidTimestamp Reason = "INVALID_TIMESTAMP"
	// A number or the length of a list is out of its range. Code INVALID_ARGUMENT.
	ReasonInvalidCount Reason = "INVALID_COUNT"
	// An enum field holds a number that this server does not know. Code INVALID_ARGUMENT.
	ReasonInvalidEnum Reason = "INVALID_ENUM"
	// The `conditional` of a read is not acceptable. Code INVALID_ARGUMENT.
	ReasonInvalidConditional Reason = "INVALID_CONDITIONAL"
	// The `group` of a message is not acceptable. Code INVALID_ARGUMENT.
	ReasonInvalidGroup Reason = "INVALID_GROUP"
	// A deduplication id is longer than 128 bytes, holds a control character, or is given in OpenTransaction,
	// which takes none. Code INVALID_ARGUMENT.
	ReasonInvalidDeduplicationID Reason = "INVALID_DEDUPLICATION_ID"
	// A receipt is malformed or belongs to another queue. Code INVALID_ARGUMENT.
	ReasonInvalidReceipt Reason = "INVALID_RECEIPT"
	// A page token is malformed or was made for another filter. Code INVALID_ARGUMENT.
	ReasonInvalidPageToken Reason = "INVALID_PAGE_TOKEN"
	// A topic pattern is not well-formed. Code INVALID_ARGUMENT.
	ReasonInvalidPattern Reason = "INVALID_PATTERN"
	// A routing key is not well-formed. Code INVALID_ARGUMENT.
	ReasonInvalidRoutingKey Reason = "INVALID_ROUTING_KEY"
	// The partitioning is not acceptable. Code INVALID_ARGUMENT.
	ReasonInvalidPartitioning Reason = "INVALID_PARTITIONING"
	// A policy contradicts itself, or holds a number out of its range. Code INVALID_ARGUMENT.
	ReasonInvalidPolicy Reason = "INVALID_POLICY"
	// The `update_mask` names something that is no field of a policy. Code INVALID_ARGUMENT.
	ReasonInvalidFieldMask Reason = "INVALID_FIELD_MASK"
	// The metadata `pgmq-queue` differs from the queue in the request. Code INVALID_ARGUMENT.
	ReasonMetadataMismatch Reason = "METADATA_MISMATCH"
	// A command came on a stream where it does not belong. Code INVALID_ARGUMENT.
	ReasonStreamProtocol Reason = "STREAM_PROTOCOL"
	// The queue does not exist. Code NOT_FOUND.
	ReasonQueueNotFound Reason = "QUEUE_NOT_FOUND"
	// The queue exists already. Code ALREADY_EXISTS.
	ReasonQueueAlreadyExists Reason = "QUEUE_ALREADY_EXISTS"
	// The queue exists with another kind, another partitioning or another policy, or without its table, which plain SQL
	// has dropped. Code FAILED_PRECONDITION.
	ReasonQueueKindMismatch Reason = "QUEUE_KIND_MISMATCH"
	// The database has no pgmq, or lacks the servers' own schema. Code FAILED_PRECONDITION.
	ReasonPgmqNotInstalled Reason = "PGMQ_NOT_INSTALLED"
	// The installed pgmq is too old for this call. Code UNIMPLEMENTED.
	ReasonPgmqVersionUnsupported Reason = "PGMQ_VERSION_UNSUPPORTED"
	// The extension pg_partman is missing. Code FAILED_PRECONDITION.
	ReasonPartmanNotInstalled Reason = "PARTMAN_NOT_INSTALLED"
	// The queue has no insert notifications to change. Code FAILED_PRECONDITION.
	ReasonNotificationsNotEnabled Reason = "NOTIFICATIONS_NOT_ENABLED"
	// No queue is bound to a pattern that matches the routing key. Code FAILED_PRECONDITION.
	ReasonNoRoute Reason = "NO_ROUTE"
	// The dead-letter queue that a policy names does not exist, or DeadLetter was called for a queue whose policy names
	// none. Code FAILED_PRECONDITION.
	ReasonDeadLetterQueueMissing Reason = "DEAD_LETTER_QUEUE_MISSING"
	// A receipt in a Transact is stale: somebody else has read the message since. Code FAILED_PRECONDITION.
	ReasonStaleReceipt Reason = "STALE_RECEIPT"
	// A receipt in a Transact names a message that is gone. Code FAILED_PRECONDITION.
	ReasonReceiptNotFound Reason = "RECEIPT_NOT_FOUND"
	// A deduplication id stands for another message, or another transaction, within its window. Code
	// FAILED_PRECONDITION.
	ReasonDeduplicationIDReused Reason = "DEDUPLICATION_ID_REUSED"
	// Postgres undid the work because of a deadlock or a serialization failure. Code ABORTED.
	ReasonConflict Reason = "CONFLICT"
	// A lock on the queue or on one of its messages, or a deduplication id, was not free within about 2 seconds. Code
	// ABORTED.
	ReasonQueueBusy Reason = "QUEUE_BUSY"
	// The database refused to commit a transaction. Code ABORTED.
	ReasonTransactionFailed Reason = "TRANSACTION_FAILED"
	// An open transaction was idle for too long, or lasted too long in all. Code ABORTED.
	ReasonTransactionExpired Reason = "TRANSACTION_EXPIRED"
	// The server has too much work to take this call. Code UNAVAILABLE.
	ReasonOverloaded Reason = "OVERLOADED"
	// The server cannot use the database now. Code UNAVAILABLE.
	ReasonDatabaseUnavailable Reason = "DATABASE_UNAVAILABLE"
	// The connection to Postgres broke after a write was handed over, and repeating is not safe. Code UNKNOWN.
	ReasonOutcomeUnknown Reason = "OUTCOME_UNKNOWN"
	// The connection to Postgres broke after a write was handed over, and repeating is safe. Code UNAVAILABLE.
	ReasonOutcomeUnknownRetrySafe Reason = "OUTCOME_UNKNOWN_RETRY_SAFE"
	// The server is shutting down and takes no new calls. Code UNAVAILABLE.
	ReasonDraining Reason = "DRAINING"
	// The disk of the database is full. Code RESOURCE_EXHAUSTED.
	ReasonStorageFull Reason = "STORAGE_FULL"
	// The database ran out of memory or another resource. Code RESOURCE_EXHAUSTED.
	ReasonDatabaseResources Reason = "DATABASE_RESOURCES"
	// The call's deadline passed. Code DEADLINE_EXCEEDED.
	ReasonDeadlineExceeded Reason = "DEADLINE_EXCEEDED"
	// The server's role in the database lacks a right that the call needs. Code PERMISSION_DENIED.
	ReasonPermissionDenied Reason = "PERMISSION_DENIED"
	// Something failed that has no reason of its own. Code INTERNAL.
	ReasonInternal Reason = "INTERNAL"
	// The bytes of the request are not the protobuf message that the method takes. Code INVALID_ARGUMENT.
	ReasonMalformedRequest Reason = "MALFORMED_REQUEST"
	// The metadata `pgmq-client`, in which a caller names itself, is not acceptable. Code INVALID_ARGUMENT.
	ReasonInvalidClientName Reason = "INVALID_CLIENT_NAME"
	// Dead letters would travel on: a dead-letter queue would have a dead-letter queue. Code FAILED_PRECONDITION.
	ReasonDeadLetterChain Reason = "DEAD_LETTER_CHAIN"
	// The database refuses what the call would do. Code FAILED_PRECONDITION.
	ReasonRefusedByDatabase Reason = "REFUSED_BY_DATABASE"
)

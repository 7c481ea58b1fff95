package pgmq

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// Transaction is a list of operations that are done together, on one queue or many: all of them or none.
type Transaction struct {
	Operations []Operation
	// DeduplicationID names the transaction, so that it can be repeated without being applied twice.
	DeduplicationID string
	// Idempotent lets the client make a DeduplicationID where there is none, so that it can repeat the transaction by
	// itself.
	Idempotent bool
}

// Operation is one operation of a [Transaction].
type Operation struct {
	encode  func(*Client) (*pgmqv1.TransactOperation, error)
	settled func()
}

// TransactResults are what a transaction gave: for each operation, in their order, what the call of that name gives.
// Where Deduplicated is set, an earlier transaction has the same deduplication id, and nothing was applied by this one.
type TransactResults = pgmqv1.TransactResponse

// Transact does several operations in one transaction of the database. A receipt that is stale or gone undoes all of
// them: [ReasonStaleReceipt], [ReasonReceiptNotFound].
func (c *Client) Transact(ctx context.Context, transaction Transaction) (*TransactResults, error) {
	request := &pgmqv1.TransactRequest{DeduplicationId: transaction.DeduplicationID}
	if transaction.Idempotent && request.DeduplicationId == "" {
		request.DeduplicationId = rand.Text()
	}
	for _, operation := range transaction.Operations {
		encoded, err := operation.encode(c)
		if err != nil {
			return nil, err
		}
		request.Operations = append(request.Operations, encoded)
	}
	response, err := call(ctx, c, terms{repeatable: request.DeduplicationId != ""}, c.raw.Queue.Transact, request)
	if err != nil {
		return nil, err
	}
	for _, operation := range transaction.Operations {
		if operation.settled != nil {
			operation.settled()
		}
	}
	return response, nil
}

// OpSend is [Queue.Send] in a transaction.
func OpSend(queue string, message any, options ...SendOption) Operation {
	return Operation{encode: func(c *Client) (*pgmqv1.TransactOperation, error) {
		m, err := c.outgoingMessage(outgoing(message, options))
		if err != nil {
			return nil, err
		}
		return &pgmqv1.TransactOperation{Operation: &pgmqv1.TransactOperation_Send{Send: sendRequest(queue, m)}}, nil
	}}
}

// OpSendBatch is [Queue.SendBatch] in a transaction.
func OpSendBatch(queue string, messages []OutgoingMessage) Operation {
	return Operation{encode: func(c *Client) (*pgmqv1.TransactOperation, error) {
		encoded, _, err := c.outgoingMessages(messages)
		request := &pgmqv1.SendBatchRequest{Queue: queue, Messages: encoded}
		return &pgmqv1.TransactOperation{Operation: &pgmqv1.TransactOperation_SendBatch{SendBatch: request}}, err
	}}
}

// OpSendTopic is [Client.SendTopic] in a transaction, and with requireMatch [Client.SendTopicMatching].
func OpSendTopic(routingKey string, message OutgoingMessage, requireMatch bool) Operation {
	return Operation{encode: func(c *Client) (*pgmqv1.TransactOperation, error) {
		request, err := c.sendTopicRequest(routingKey, message, requireMatch)
		return &pgmqv1.TransactOperation{Operation: &pgmqv1.TransactOperation_SendTopic{SendTopic: request}}, err
	}}
}

// OpDelete is [Queue.Delete] in a transaction.
func OpDelete(queue string, items Items) Operation {
	return opSettle(queue, items, settlement{action: actionDelete})
}

// OpArchive is [Queue.Archive] in a transaction.
func OpArchive(queue string, items Items) Operation {
	return opSettle(queue, items, settlement{action: actionArchive})
}

// OpRelease is [Queue.Release] in a transaction.
func OpRelease(queue string, items Items, delay time.Duration) Operation {
	return opSettle(queue, items, settlement{action: actionRelease, span: delay})
}

// OpDeadLetter is [Queue.DeadLetter] in a transaction.
func OpDeadLetter(queue string, items Items, reason string) Operation {
	return opSettle(queue, items, settlement{action: actionDeadLetter, reason: reason})
}

// OpSetVisibilityTimeout is [Queue.SetVisibilityTimeout] in a transaction.
func OpSetVisibilityTimeout(queue string, items Items, timeout time.Duration) Operation {
	return opSettle(queue, items, settlement{action: actionExtend, span: timeout})
}

// OpSetVisibleAt is [Queue.SetVisibleAt] in a transaction.
func OpSetVisibleAt(queue string, items Items, at time.Time) Operation {
	return opSettle(queue, items, settlement{action: actionExtend, at: at})
}

func opSettle(queue string, items Items, s settlement) Operation {
	encode := func(*Client) (*pgmqv1.TransactOperation, error) { return settleOperation(queue, items, s) }
	settled := func() {
		for _, message := range items.messages {
			message.consumer.settled(message, s, Done)
		}
	}
	return Operation{encode, settled}
}

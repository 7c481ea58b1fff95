package pgmq

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// Queue is a name with methods. It may be used by many goroutines at once.
type Queue struct {
	client *Client
	name   string
}

// Name gives the queue's name.
func (q *Queue) Name() string { return q.name }

// Ordering is how a read chooses among the visible messages. Only [GroupedHead] keeps the order within groups.
type Ordering = pgmqv1.Ordering

// The orderings; the zero value leaves the choice to the queue's policy.
const (
	Unordered         = pgmqv1.Ordering_ORDERING_UNORDERED
	Grouped           = pgmqv1.Ordering_ORDERING_GROUPED
	GroupedRoundRobin = pgmqv1.Ordering_ORDERING_GROUPED_ROUND_ROBIN
	GroupedHead       = pgmqv1.Ordering_ORDERING_GROUPED_HEAD
)

// ReadOptions say what a read takes. The zero value takes one message, as the queue's policy says.
type ReadOptions struct {
	// MaxMessages is the most messages: up to 1,000. 0 means 1.
	MaxMessages int
	// VisibilityTimeout is how long the messages stay invisible to others.
	VisibilityTimeout time.Duration
	// Wait is how long to wait for a first message: up to 50 seconds.
	Wait     time.Duration
	Ordering Ordering
	// Conditional takes only messages whose body contains this value, or [Text].
	Conditional any
}

// Read reads up to a number of visible messages, which are invisible to others from then on, for the visibility
// timeout. None is no error.
func (q *Queue) Read(ctx context.Context, options ReadOptions) ([]*Message, error) {
	conditional, err := q.client.conditional(options.Conditional)
	if err != nil {
		return nil, err
	}
	request := &pgmqv1.ReadBatchRequest{
		Queue:             q.name,
		VisibilityTimeout: span(options.VisibilityTimeout),
		Conditional:       conditional,
		Ordering:          options.Ordering,
		MaxMessages:       int32(options.MaxMessages),
		Wait:              span(options.Wait),
	}
	response, err := call(ctx, q.client, terms{longer: max(options.Wait, 0)}, q.client.raw.Queue.ReadBatch, request)
	return q.client.messages(q.name, response.GetMessages()), err
}

// Pop reads and deletes up to a number of visible messages in one step: if the reply is lost, so are they.
func (q *Queue) Pop(ctx context.Context, maxMessages int) ([]*Message, error) {
	request := &pgmqv1.PopRequest{Queue: q.name, MaxMessages: int32(maxMessages)}
	response, err := call(ctx, q.client, once, q.client.raw.Queue.Pop, request)
	return q.client.messages(q.name, response.GetMessages()), err
}

func (c *Client) conditional(condition any) (string, error) {
	if condition == nil {
		return "", nil
	}
	return c.encode("conditional", condition)
}

// Items are the messages that a call is about: made by [Messages], [Receipts] or [IDs].
type Items struct {
	ids      []int64
	receipts []string
	messages []*Message
}

// Messages names messages by their receipts: what somebody else has read since is [Stale], and stays as it is. With one
// that is nil, or was not read, the server refuses the call.
func Messages(messages ...*Message) Items {
	return Items{
		receipts: convert(messages, func(m *Message) string {
			if m == nil {
				return ""
			}
			return m.Receipt
		}),
		messages: messages,
	}
}

// Receipts names messages by their receipts, as [Messages] does.
func Receipts(receipts ...string) Items { return Items{receipts: receipts} }

// IDs names messages by their ids, whoever holds them.
func IDs(ids ...int64) Items { return Items{ids: ids} }

// Delete removes messages for good. Each has its own result, in the order of the items. When a call that settles several
// messages fails, some of them may be settled: [Error.OutcomeUnknown].
func (q *Queue) Delete(ctx context.Context, items Items) ([]*Result, error) {
	return q.client.settle(ctx, q.name, items, settlement{action: actionDelete})
}

// Archive moves messages to the queue's archive.
func (q *Queue) Archive(ctx context.Context, items Items) ([]*Result, error) {
	return q.client.settle(ctx, q.name, items, settlement{action: actionArchive})
}

// Release gives messages back after a delay; see [Message.Release]. It takes no ids.
func (q *Queue) Release(ctx context.Context, items Items, delay time.Duration) ([]*Result, error) {
	return q.client.settle(ctx, q.name, items, settlement{action: actionRelease, span: delay})
}

// DeadLetter moves messages to the queue's dead-letter queue. It takes no ids.
func (q *Queue) DeadLetter(ctx context.Context, items Items, reason string) ([]*Result, error) {
	return q.client.settle(ctx, q.name, items, settlement{action: actionDeadLetter, reason: reason})
}

// SetVisibilityTimeout makes messages visible after a span, sooner or later than they would be; [Zero] means at once.
func (q *Queue) SetVisibilityTimeout(ctx context.Context, items Items, timeout time.Duration) ([]*Result, error) {
	return q.client.settle(ctx, q.name, items, settlement{action: actionExtend, span: timeout})
}

// SetVisibleAt makes messages visible at a moment: up to 12 hours ahead.
func (q *Queue) SetVisibleAt(ctx context.Context, items Items, at time.Time) ([]*Result, error) {
	return q.client.settle(ctx, q.name, items, settlement{action: actionExtend, at: at})
}

// settlement is what becomes of messages.
type settlement struct {
	action pgmqv1.SettleAction
	span   time.Duration
	at     time.Time
	reason string
}

const (
	actionDelete     = pgmqv1.SettleAction_SETTLE_ACTION_DELETE
	actionArchive    = pgmqv1.SettleAction_SETTLE_ACTION_ARCHIVE
	actionRelease    = pgmqv1.SettleAction_SETTLE_ACTION_RELEASE
	actionDeadLetter = pgmqv1.SettleAction_SETTLE_ACTION_DEAD_LETTER
	// Not an action of the contract: the messages are kept.
	actionExtend pgmqv1.SettleAction = -1
)

// settle makes the unary call of a settlement. What it ends is no longer in the hands of the messages' consumers.
func (c *Client) settle(ctx context.Context, queue string, items Items, s settlement) ([]*Result, error) {
	operation, err := settleOperation(queue, items, s)
	if err != nil {
		return nil, err
	}
	terms := terms{repeatable: s.action != actionExtend, several: len(items.ids)+len(items.receipts) > 1}
	var response interface{ GetResults() []*pgmqv1.ItemResult }
	switch operation := operation.GetOperation().(type) {
	case *pgmqv1.TransactOperation_Delete:
		response, err = call(ctx, c, terms, c.raw.Queue.Delete, operation.Delete)
	case *pgmqv1.TransactOperation_Archive:
		response, err = call(ctx, c, terms, c.raw.Queue.Archive, operation.Archive)
	case *pgmqv1.TransactOperation_Release:
		response, err = call(ctx, c, terms, c.raw.Queue.Release, operation.Release)
	case *pgmqv1.TransactOperation_DeadLetter:
		response, err = call(ctx, c, terms, c.raw.Queue.DeadLetter, operation.DeadLetter)
	case *pgmqv1.TransactOperation_SetVisibilityTimeout:
		response, err = call(ctx, c, terms, c.raw.Queue.SetVisibilityTimeout, operation.SetVisibilityTimeout)
	}
	if err != nil {
		return nil, err
	}
	settled := response.GetResults()
	for i, message := range items.messages {
		message.consumer.settled(message, s, settled[i].Outcome)
	}
	return settled, nil
}

// settleOperation gives the request of a settlement, as it stands in a transaction.
func settleOperation(queue string, items Items, s settlement) (*pgmqv1.TransactOperation, error) {
	operation := &pgmqv1.TransactOperation{}
	if len(items.ids) > 0 && (s.action == actionRelease || s.action == actionDeadLetter) {
		return nil, refused(codes.InvalidArgument, "msg_ids", "this call takes receipts only", nil)
	}
	switch s.action {
	case actionDelete:
		request := &pgmqv1.DeleteRequest{Queue: queue, MsgIds: items.ids, Receipts: items.receipts}
		operation.Operation = &pgmqv1.TransactOperation_Delete{Delete: request}
	case actionArchive:
		request := &pgmqv1.ArchiveRequest{Queue: queue, MsgIds: items.ids, Receipts: items.receipts}
		operation.Operation = &pgmqv1.TransactOperation_Archive{Archive: request}
	case actionRelease:
		request := &pgmqv1.ReleaseRequest{Queue: queue, Receipts: items.receipts, Delay: span(s.span)}
		operation.Operation = &pgmqv1.TransactOperation_Release{Release: request}
	case actionDeadLetter:
		request := &pgmqv1.DeadLetterRequest{Queue: queue, Receipts: items.receipts, Reason: s.reason}
		operation.Operation = &pgmqv1.TransactOperation_DeadLetter{DeadLetter: request}
	case actionExtend:
		request := &pgmqv1.SetVisibilityTimeoutRequest{Queue: queue, MsgIds: items.ids, Receipts: items.receipts}
		if at := timestamp(s.at); at != nil {
			request.Visibility = &pgmqv1.SetVisibilityTimeoutRequest_VisibleAt{VisibleAt: at}
		} else if timeout := span(s.span); timeout != nil {
			request.Visibility = &pgmqv1.SetVisibilityTimeoutRequest_VisibilityTimeout{VisibilityTimeout: timeout}
		}
		operation.Operation = &pgmqv1.TransactOperation_SetVisibilityTimeout{SetVisibilityTimeout: request}
	}
	return operation, nil
}

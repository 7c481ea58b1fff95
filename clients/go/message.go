package pgmq

import (
	"context"
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// Zero is a span of no time at all. Everywhere in this package, a span of 0 is one that is not given, so that the
// policy of the queue or the server's default holds; Zero overrides these.
const Zero time.Duration = math.MinInt64

// Outcome is what a call did to one message. Anything but [Done] means that the call has changed nothing.
type Outcome = pgmqv1.Outcome

const (
	// Done: the call did what was asked.
	Done = pgmqv1.Outcome_OUTCOME_DONE
	// NotFound: the message is gone, by this caller or another. It may be treated as done.
	NotFound = pgmqv1.Outcome_OUTCOME_NOT_FOUND
	// Stale: somebody else has read the message since, and has it now.
	Stale = pgmqv1.Outcome_OUTCOME_STALE
)

// Result is what became of one message of a call: its Outcome, and as Vt the moment when the message becomes visible,
// where the call has set it.
type Result = pgmqv1.ItemResult

// Message is a message as it was read. It knows its queue and its receipt, so it settles itself.
type Message struct {
	// Queue is the name of the queue that it was read from.
	Queue string
	// MsgID is unique within the queue.
	MsgID int64
	// ReadCt is how often it was read, this time included.
	ReadCt int
	// EnqueuedAt is when it was sent, by the database's clock, as all moments here.
	EnqueuedAt time.Time
	// LastReadAt is when it was read last; zero for one that never was.
	LastReadAt time.Time
	// VT is when it becomes visible to others, as this was when the message was read.
	VT time.Time
	// MessageText is the body as JSON text. Empty where plain SQL has sent a NULL.
	MessageText string
	// HeadersText is the JSON text of the headers; empty where there are none.
	HeadersText string
	// Receipt names this delivery. Empty where nothing was read: in the results of Pop and of lists.
	Receipt string
	// TextsOmitted tells, in lists, that no reply can carry the body.
	TextsOmitted bool

	client *Client
	// Of messages of a consumer, which guards what follows.
	consumer *Consumer
	settled  bool
}

func (c *Client) message(queue string, m *pgmqv1.Message) *Message {
	return &Message{
		Queue:        queue,
		MsgID:        m.GetMsgId(),
		ReadCt:       int(m.GetReadCt()),
		EnqueuedAt:   moment(m.GetEnqueuedAt()),
		LastReadAt:   moment(m.GetLastReadAt()),
		VT:           moment(m.GetVt()),
		MessageText:  m.GetMessage(),
		HeadersText:  m.GetHeaders(),
		Receipt:      m.GetReceipt(),
		TextsOmitted: m.GetTextsOmitted(),
		client:       c,
	}
}

func (c *Client) messages(queue string, given []*pgmqv1.Message) []*Message {
	return convert(given, func(m *pgmqv1.Message) *Message { return c.message(queue, m) })
}

// Message gives the body as a value: with the default codec a map[string]any, []any, string, json.Number, bool or nil.
func (m *Message) Message() (any, error) {
	var value any
	return value, m.Decode(&value)
}

// Decode puts the body into what a pointer points to, as json.Unmarshal does.
func (m *Message) Decode(into any) error { return m.decode("message", m.MessageText, into) }

// Headers gives the headers; nil where there are none.
func (m *Message) Headers() (map[string]any, error) {
	var headers map[string]any
	return headers, m.decode("headers", m.HeadersText, &headers)
}

func (m *Message) decode(field, text string, into any) error {
	if text == "" {
		return nil
	}
	if err := m.client.codec.Unmarshal([]byte(text), into); err != nil {
		return refused(codes.InvalidArgument, field, "the text does not fit: "+err.Error(), err)
	}
	return nil
}

// Delete removes the message for good: its work is done.
func (m *Message) Delete(ctx context.Context) (Outcome, error) {
	return m.settle(ctx, settlement{action: actionDelete})
}

// Archive moves the message to the queue's archive: its work is done, and it is kept.
func (m *Message) Archive(ctx context.Context) (Outcome, error) {
	return m.settle(ctx, settlement{action: actionArchive})
}

// Release gives the message back, to be read again after a delay. A delay of 0 leaves that to the queue's backoff,
// and without one it is visible at once, as with [Zero].
func (m *Message) Release(ctx context.Context, delay time.Duration) (Outcome, error) {
	return m.settle(ctx, settlement{action: actionRelease, span: delay})
}

// DeadLetter moves the message to the queue's dead-letter queue: it will never succeed, for this reason.
func (m *Message) DeadLetter(ctx context.Context, reason string) (Outcome, error) {
	return m.settle(ctx, settlement{action: actionDeadLetter, reason: reason})
}

// Extend keeps the message from others for so long from now. Of a message of a consumer, 0 means the consumer's
// visibility timeout, and the time is never made shorter.
func (m *Message) Extend(ctx context.Context, visibilityTimeout time.Duration) (Outcome, error) {
	return m.settle(ctx, settlement{action: actionExtend, span: visibilityTimeout})
}

func (m *Message) settle(ctx context.Context, s settlement) (Outcome, error) {
	if m == nil || m.client == nil || m.Receipt == "" {
		return 0, refused(codes.FailedPrecondition, "receipt", "the message was not read, so it has no receipt", nil)
	}
	// What cannot be written to the wire must not come to a stream that others share.
	if err := isUTF8("reason", s.reason); err != nil {
		return 0, err
	}
	if m.consumer != nil {
		return m.consumer.settle(ctx, m, s)
	}
	results, err := m.client.settle(ctx, m.Queue, Messages(m), s)
	if err != nil {
		return 0, err
	}
	return results[0].Outcome, nil
}

// span is a Duration as the contract has it: unset for 0.
func span(d time.Duration) *durationpb.Duration {
	switch d {
	case 0:
		return nil
	case Zero:
		return &durationpb.Duration{}
	}
	return durationpb.New(d)
}

func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func convert[A, B any](from []A, one func(A) B) []B {
	to := make([]B, len(from))
	for i, a := range from {
		to[i] = one(a)
	}
	return to
}

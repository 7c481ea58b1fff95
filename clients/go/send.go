package pgmq

import (
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// OutgoingMessage is a message to be sent.
type OutgoingMessage struct {
	// Message is the body: any value with a JSON form, or exact JSON text as a [Text] or a json.RawMessage. A string is a
	// JSON string, and a []byte is one in base64, as encoding/json has it.
	Message any
	// Headers is nil, a value whose JSON form is an object, or a [Text].
	Headers any
	// Delay is how long the message stays invisible. 0 means as the queue's policy says, [Zero] not at all.
	Delay time.Duration
	// VisibleAt is when the message becomes visible. Not together with Delay.
	VisibleAt time.Time
	// Group is the message's group for the grouped orderings.
	Group string
	// DeduplicationID names the message, so that it can be sent again without being stored twice.
	DeduplicationID string
	// Idempotent lets the client make a DeduplicationID where there is none. Messages that have one are sent again
	// after a failure that leaves open what became of them.
	Idempotent bool
}

// SendOption is one more property of a message that is sent.
type SendOption func(*OutgoingMessage)

// WithHeaders gives the message headers: a value whose JSON form is an object, or a [Text].
func WithHeaders(headers any) SendOption {
	return func(m *OutgoingMessage) { m.Headers = headers }
}

// WithDelay keeps the message invisible for a while; [Zero] overrides the delay of the queue's policy.
func WithDelay(delay time.Duration) SendOption {
	return func(m *OutgoingMessage) { m.Delay = delay }
}

// WithVisibleAt keeps the message invisible until a moment.
func WithVisibleAt(moment time.Time) SendOption {
	return func(m *OutgoingMessage) { m.VisibleAt = moment }
}

// WithGroup puts the message into a group for the grouped orderings.
func WithGroup(group string) SendOption {
	return func(m *OutgoingMessage) { m.Group = group }
}

// WithDeduplicationID names the message, so that it can be sent again without being stored twice.
func WithDeduplicationID(id string) SendOption {
	return func(m *OutgoingMessage) { m.DeduplicationID = id }
}

// Idempotent lets the client make a deduplication id, so that it can repeat the send by itself where it is open what
// became of it.
func Idempotent() SendOption {
	return func(m *OutgoingMessage) { m.Idempotent = true }
}

func outgoing(message any, options []SendOption) OutgoingMessage {
	m := OutgoingMessage{Message: message}
	for _, option := range options {
		if option != nil {
			option(&m)
		}
	}
	return m
}

// Sent is what became of a message that was sent.
type Sent struct {
	MsgID int64
	// Deduplicated tells that nothing was stored: an earlier message has the same deduplication id.
	Deduplicated bool
}

// TopicSent is what became of a message that was sent to a topic: a [TopicCopy] for each queue, ordered by queue. Where
// Deduplicated is set there are copies, and an earlier send has stored all of them.
type TopicSent = pgmqv1.SendTopicResponse

// TopicCopy is one copy of a message that was sent to a topic.
type TopicCopy = pgmqv1.TopicCopy

// Send sends one message, whose body is any value with a JSON form, or a [Text]. It is in the queue when Send returns.
//
// A lone Send is a unary call. While another one of the same client is under way, it goes over a stream that the client
// keeps for the queue: the fast way for many goroutines. Answers and errors are the same by both ways. Metadata that
// the context has for gRPC makes it a unary call, too.
func (q *Queue) Send(ctx context.Context, message any, options ...SendOption) (Sent, error) {
	m, err := q.client.outgoingMessage(outgoing(message, options))
	if err != nil {
		return Sent{}, err
	}
	shared, err := q.client.sends.begin(ctx, q, m)
	if err != nil {
		return Sent{}, err
	}
	defer q.client.sends.end(shared)
	if shared == nil {
		return q.sendAlone(ctx, m)
	}
	s, err := shared.put(ctx, m)
	if err != nil {
		return Sent{}, err
	}
	s.finish()
	return s.Wait()
}

// sendAlone makes the unary call.
func (q *Queue) sendAlone(ctx context.Context, m *pgmqv1.OutgoingMessage) (Sent, error) {
	response, err := call(ctx, q.client, terms{repeatable: m.DeduplicationId != ""}, q.client.raw.Queue.Send, sendRequest(q.name, m))
	return Sent{response.GetMsgId(), response.GetDeduplicated()}, err
}

// SendBatch sends up to 1,000 messages: all of them, in order, or none.
func (q *Queue) SendBatch(ctx context.Context, messages []OutgoingMessage) ([]Sent, error) {
	encoded, keyed, err := q.client.outgoingMessages(messages)
	if err != nil {
		return nil, err
	}
	request := &pgmqv1.SendBatchRequest{Queue: q.name, Messages: encoded}
	response, err := call(ctx, q.client, terms{repeatable: keyed}, q.client.raw.Queue.SendBatch, request)
	return convert(response.GetResults(), func(r *pgmqv1.SendResult) Sent { return Sent{r.GetMsgId(), r.GetDeduplicated()} }), err
}

// SendTopic sends one message to every queue that is bound to a pattern which matches the routing key.
func (c *Client) SendTopic(ctx context.Context, routingKey string, message any, options ...SendOption) (*TopicSent, error) {
	return c.sendTopic(ctx, routingKey, outgoing(message, options), false)
}

// SendTopicMatching is SendTopic that fails with [ReasonNoRoute] where no queue matches.
func (c *Client) SendTopicMatching(ctx context.Context, routingKey string, message any, options ...SendOption) (*TopicSent, error) {
	return c.sendTopic(ctx, routingKey, outgoing(message, options), true)
}

func (c *Client) sendTopic(ctx context.Context, routingKey string, message OutgoingMessage, requireMatch bool) (*TopicSent, error) {
	request, err := c.sendTopicRequest(routingKey, message, requireMatch)
	if err != nil {
		return nil, err
	}
	return call(ctx, c, terms{repeatable: request.DeduplicationId != ""}, c.raw.Topic.SendTopic, request)
}

// SendTopicBatch sends several messages with one routing key: all copies of all messages, or none. With requireMatch
// it fails with [ReasonNoRoute] where no queue matches.
func (c *Client) SendTopicBatch(ctx context.Context, routingKey string, messages []OutgoingMessage, requireMatch bool) ([]*TopicCopy, error) {
	encoded, keyed, err := c.outgoingMessages(messages)
	if err != nil {
		return nil, err
	}
	request := &pgmqv1.SendTopicBatchRequest{RoutingKey: routingKey, Messages: encoded, RequireMatch: requireMatch}
	response, err := call(ctx, c, terms{repeatable: keyed}, c.raw.Topic.SendTopicBatch, request)
	return response.GetCopies(), err
}

// outgoingMessage gives a message the form of the contract.
func (c *Client) outgoingMessage(m OutgoingMessage) (*pgmqv1.OutgoingMessage, error) {
	encoded := &pgmqv1.OutgoingMessage{Group: m.Group, DeduplicationId: m.DeduplicationID}
	var err error
	if encoded.Message, err = c.encode("message", m.Message); err != nil {
		return nil, err
	}
	if m.Headers != nil {
		if encoded.Headers, err = c.encode("headers", m.Headers); err != nil {
			return nil, err
		}
	}
	if m.Idempotent && m.DeduplicationID == "" {
		encoded.DeduplicationId = rand.Text()
	}
	if err := isUTF8("group", m.Group); err != nil {
		return nil, err
	}
	if err := isUTF8("deduplication_id", m.DeduplicationID); err != nil {
		return nil, err
	}
	if m.Delay != 0 && !m.VisibleAt.IsZero() {
		failure := refused(codes.InvalidArgument, "visible_at", "a message has a delay, or a moment when it becomes visible", nil)
		failure.Reason = ReasonConflictingFields
		return nil, failure
	}
	if delay := span(m.Delay); delay != nil {
		encoded.Schedule = &pgmqv1.OutgoingMessage_Delay{Delay: delay}
	} else if at := timestamp(m.VisibleAt); at != nil {
		encoded.Schedule = &pgmqv1.OutgoingMessage_VisibleAt{VisibleAt: at}
	}
	return encoded, nil
}

// outgoingMessages tells, too, whether all have deduplication ids.
func (c *Client) outgoingMessages(messages []OutgoingMessage) ([]*pgmqv1.OutgoingMessage, bool, error) {
	all, keyed := make([]*pgmqv1.OutgoingMessage, len(messages)), true
	for i, message := range messages {
		encoded, err := c.outgoingMessage(message)
		if err != nil {
			return nil, false, err
		}
		all[i], keyed = encoded, keyed && encoded.DeduplicationId != ""
	}
	return all, keyed, nil
}

func sendRequest(queue string, m *pgmqv1.OutgoingMessage) *pgmqv1.SendRequest {
	request := &pgmqv1.SendRequest{Queue: queue, Message: m.Message, Headers: m.Headers, Group: m.Group, DeduplicationId: m.DeduplicationId}
	switch schedule := m.Schedule.(type) {
	case *pgmqv1.OutgoingMessage_Delay:
		request.Schedule = &pgmqv1.SendRequest_Delay{Delay: schedule.Delay}
	case *pgmqv1.OutgoingMessage_VisibleAt:
		request.Schedule = &pgmqv1.SendRequest_VisibleAt{VisibleAt: schedule.VisibleAt}
	}
	return request
}

func (c *Client) sendTopicRequest(routingKey string, message OutgoingMessage, requireMatch bool) (*pgmqv1.SendTopicRequest, error) {
	m, err := c.outgoingMessage(message)
	if err != nil {
		return nil, err
	}
	request := &pgmqv1.SendTopicRequest{
		RoutingKey: routingKey, Message: m.Message, Headers: m.Headers, Group: m.Group,
		DeduplicationId: m.DeduplicationId, RequireMatch: requireMatch,
	}
	switch schedule := m.Schedule.(type) {
	case *pgmqv1.OutgoingMessage_Delay:
		request.Schedule = &pgmqv1.SendTopicRequest_Delay{Delay: schedule.Delay}
	case *pgmqv1.OutgoingMessage_VisibleAt:
		request.Schedule = &pgmqv1.SendTopicRequest_VisibleAt{VisibleAt: schedule.VisibleAt}
	}
	return request, nil
}

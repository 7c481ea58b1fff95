package pgmq

import (
	"context"
	"iter"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// BindTopic lets a queue receive what is sent with routing keys that match a pattern, and tells whether this is new.
func (c *Client) BindTopic(ctx context.Context, pattern, queue string) (created bool, err error) {
	response, err := call(ctx, c, repeatable, c.raw.Topic.BindTopic, &pgmqv1.BindTopicRequest{Pattern: pattern, Queue: queue})
	return response.GetCreated(), err
}

// UnbindTopic removes a binding, and tells whether there was one.
func (c *Client) UnbindTopic(ctx context.Context, pattern, queue string) (removed bool, err error) {
	response, err := call(ctx, c, repeatable, c.raw.Topic.UnbindTopic, &pgmqv1.UnbindTopicRequest{Pattern: pattern, Queue: queue})
	return response.GetRemoved(), err
}

// BindTopic is [Client.BindTopic] for this queue.
func (q *Queue) BindTopic(ctx context.Context, pattern string) (created bool, err error) {
	return q.client.BindTopic(ctx, pattern, q.name)
}

// UnbindTopic is [Client.UnbindTopic] for this queue.
func (q *Queue) UnbindTopic(ctx context.Context, pattern string) (removed bool, err error) {
	return q.client.UnbindTopic(ctx, pattern, q.name)
}

// ListTopicBindings lists the bindings of a queue, or of all with an empty name, ordered by pattern and then by queue.
// A pageSize of 0 means 100.
func (c *Client) ListTopicBindings(ctx context.Context, queue string, pageSize int) iter.Seq2[*pgmqv1.TopicBinding, error] {
	return pages(itself, func(token string) ([]*pgmqv1.TopicBinding, string, error) {
		response, err := call(ctx, c, repeatable, c.raw.Topic.ListTopicBindings, &pgmqv1.ListTopicBindingsRequest{
			PageSize: int32(pageSize), PageToken: token, Queue: queue,
		})
		return response.GetBindings(), response.GetNextPageToken(), err
	})
}

// TestRouting tells which bindings match a routing key. It sends nothing.
func (c *Client) TestRouting(ctx context.Context, routingKey string) ([]*pgmqv1.TopicBinding, error) {
	response, err := call(ctx, c, repeatable, c.raw.Topic.TestRouting, &pgmqv1.TestRoutingRequest{RoutingKey: routingKey})
	return response.GetMatches(), err
}

// Name is something that [Client.ValidateName] checks: made by [QueueName], [RoutingKey] or [Pattern].
type Name struct{ request *pgmqv1.ValidateNameRequest }

// QueueName is the name of a queue that is to be created.
func QueueName(name string) Name {
	return Name{&pgmqv1.ValidateNameRequest{Name: &pgmqv1.ValidateNameRequest_Queue{Queue: name}}}
}

// RoutingKey is what a message is sent to a topic with.
func RoutingKey(key string) Name {
	return Name{&pgmqv1.ValidateNameRequest{Name: &pgmqv1.ValidateNameRequest_RoutingKey{RoutingKey: key}}}
}

// Pattern is what a queue is bound with.
func Pattern(pattern string) Name {
	return Name{&pgmqv1.ValidateNameRequest{Name: &pgmqv1.ValidateNameRequest_Pattern{Pattern: pattern}}}
}

// ValidateName tells whether a name is well-formed: nil if it is.
func (c *Client) ValidateName(ctx context.Context, name Name) error {
	_, err := call(ctx, c, repeatable, c.raw.Queue.ValidateName, name.request)
	return err
}

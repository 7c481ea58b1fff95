package pgmq

import (
	"context"
	"iter"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// CreateOptions say what kind of queue is made. The zero value makes a standard one, without a policy.
type CreateOptions struct {
	Kind         Kind
	Partitioning *Partitioning
	Policy       *Policy
	Layout       Layout
	// FailIfExists fails with [ReasonQueueAlreadyExists] where the queue is there.
	FailIfExists bool
}

// CreateQueue creates a queue, and tells whether this call has. One that is there and has the same kind and policy is
// left as it is.
func (c *Client) CreateQueue(ctx context.Context, queue string, options CreateOptions) (info *QueueInfo, created bool, err error) {
	response, err := call(ctx, c, repeatable, c.raw.Queue.CreateQueue, &pgmqv1.CreateQueueRequest{
		Queue:        queue,
		Kind:         options.Kind,
		Partitioning: options.Partitioning,
		Policy:       options.Policy.encode(),
		FailIfExists: options.FailIfExists,
		Layout:       options.Layout,
	})
	return response.GetQueue(), response.GetCreated(), err
}

// GetQueue describes a queue.
func (c *Client) GetQueue(ctx context.Context, queue string) (*QueueInfo, error) {
	response, err := call(ctx, c, repeatable, c.raw.Queue.GetQueue, &pgmqv1.GetQueueRequest{Queue: queue})
	return response.GetQueue(), err
}

// ListOptions say what a list of queues, or of what queues have, holds. The zero value means everything.
type ListOptions struct {
	// Prefix is what the names start with.
	Prefix string
	// PageSize is how many come with one call; 0 means 100.
	PageSize int
	// DeadLetterQueue lists only queues that have this dead-letter queue. Only for ListQueues.
	DeadLetterQueue string
	// IncludeArchive counts the archives, which can be slow. Only for ListQueueMetrics.
	IncludeArchive bool
}

// ListQueues lists queues, ordered by name.
func (c *Client) ListQueues(ctx context.Context, options ListOptions) iter.Seq2[*QueueInfo, error] {
	return pages(itself, func(token string) ([]*QueueInfo, string, error) {
		response, err := call(ctx, c, repeatable, c.raw.Queue.ListQueues, &pgmqv1.ListQueuesRequest{
			PageSize: int32(options.PageSize), PageToken: token, Prefix: options.Prefix, DeadLetterQueue: options.DeadLetterQueue,
		})
		return response.GetQueues(), response.GetNextPageToken(), err
	})
}

// UpdateQueue changes the fields of a queue's policy that are set in policy, and clears those that are named, by their
// names in the contract, such as "dead_letter".
func (c *Client) UpdateQueue(ctx context.Context, queue string, policy Policy, clear ...string) (*QueueInfo, error) {
	request := &pgmqv1.UpdateQueueRequest{Queue: queue, Policy: policy.encode()}
	if len(clear) > 0 {
		request.UpdateMask = &fieldmaskpb.FieldMask{Paths: slices.Clone(clear)}
		request.Policy.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			request.UpdateMask.Paths = append(request.UpdateMask.Paths, string(field.Name()))
			return true
		})
	}
	response, err := call(ctx, c, repeatable, c.raw.Admin.UpdateQueue, request)
	return response.GetQueue(), err
}

// DropQueue removes a queue with its messages, its archive and its bindings.
func (c *Client) DropQueue(ctx context.Context, queue string) error {
	_, err := call(ctx, c, once, c.raw.Queue.DropQueue, &pgmqv1.DropQueueRequest{Queue: queue})
	return err
}

// PurgeQueue removes all messages of a queue, and tells how many. The archive stays.
func (c *Client) PurgeQueue(ctx context.Context, queue string) (int64, error) {
	response, err := call(ctx, c, once, c.raw.Queue.PurgeQueue, &pgmqv1.PurgeQueueRequest{Queue: queue})
	return response.GetPurgedCount(), err
}

// GetQueueMetrics counts the messages of a queue, and with includeArchive those of its archive.
func (c *Client) GetQueueMetrics(ctx context.Context, queue string, includeArchive bool) (*Metrics, error) {
	request := &pgmqv1.GetQueueMetricsRequest{Queue: queue, IncludeArchive: includeArchive}
	response, err := call(ctx, c, repeatable, c.raw.Queue.GetQueueMetrics, request)
	return response.GetMetrics(), err
}

// ListQueueMetrics counts the messages of many queues, ordered by name.
func (c *Client) ListQueueMetrics(ctx context.Context, options ListOptions) iter.Seq2[*Metrics, error] {
	return pages(itself, func(token string) ([]*Metrics, string, error) {
		response, err := call(ctx, c, repeatable, c.raw.Queue.ListQueueMetrics, &pgmqv1.ListQueueMetricsRequest{
			PageSize: int32(options.PageSize), PageToken: token, Prefix: options.Prefix, IncludeArchive: options.IncludeArchive,
		})
		return response.GetMetrics(), response.GetNextPageToken(), err
	})
}

// SetQueueLayout changes how the table of a queue is laid out. It can take long.
func (c *Client) SetQueueLayout(ctx context.Context, queue string, layout Layout) (*QueueInfo, error) {
	response, err := call(ctx, c, long, c.raw.Admin.SetQueueLayout, &pgmqv1.SetQueueLayoutRequest{Queue: queue, Layout: layout})
	return response.GetQueue(), err
}

// Create is [Client.CreateQueue].
func (q *Queue) Create(ctx context.Context, options CreateOptions) (info *QueueInfo, created bool, err error) {
	return q.client.CreateQueue(ctx, q.name, options)
}

// Get is [Client.GetQueue].
func (q *Queue) Get(ctx context.Context) (*QueueInfo, error) { return q.client.GetQueue(ctx, q.name) }

// Update is [Client.UpdateQueue].
func (q *Queue) Update(ctx context.Context, policy Policy, clear ...string) (*QueueInfo, error) {
	return q.client.UpdateQueue(ctx, q.name, policy, clear...)
}

// Drop is [Client.DropQueue].
func (q *Queue) Drop(ctx context.Context) error { return q.client.DropQueue(ctx, q.name) }

// Purge is [Client.PurgeQueue].
func (q *Queue) Purge(ctx context.Context) (int64, error) { return q.client.PurgeQueue(ctx, q.name) }

// Metrics is [Client.GetQueueMetrics].
func (q *Queue) Metrics(ctx context.Context, includeArchive bool) (*Metrics, error) {
	return q.client.GetQueueMetrics(ctx, q.name, includeArchive)
}

// SetLayout is [Client.SetQueueLayout].
func (q *Queue) SetLayout(ctx context.Context, layout Layout) (*QueueInfo, error) {
	return q.client.SetQueueLayout(ctx, q.name, layout)
}

// pages gives a list that comes in pages one by one, and asks for the next page when it is needed. After an error
// there is nothing more.
func pages[A, B any](one func(A) B, page func(token string) ([]A, string, error)) iter.Seq2[B, error] {
	return func(yield func(B, error) bool) {
		for token := ""; ; {
			items, next, err := page(token)
			if err != nil {
				var none B
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(one(item), nil) {
					return
				}
			}
			if next == "" {
				return
			}
			token = next
		}
	}
}

func itself[A any](item A) A { return item }

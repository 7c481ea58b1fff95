package pgmq

import (
	"context"
	"iter"
	"time"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// State is what a message of a queue waits for.
type State = pgmqv1.MessageState

// The states of messages; the zero value means any.
const (
	StateVisible  = pgmqv1.MessageState_MESSAGE_STATE_VISIBLE
	StateInFlight = pgmqv1.MessageState_MESSAGE_STATE_IN_FLIGHT
	StateDelayed  = pgmqv1.MessageState_MESSAGE_STATE_DELAYED
)

// ListMessagesOptions say which messages of a queue are listed. The zero value means all.
type ListMessagesOptions struct {
	State    State
	MsgIDs   []int64
	PageSize int
}

// ListMessages lists messages, ordered by id, and changes nothing: none is read, and none has a receipt.
func (q *Queue) ListMessages(ctx context.Context, options ListMessagesOptions) iter.Seq2[*Message, error] {
	one := func(m *pgmqv1.Message) *Message { return q.client.message(q.name, m) }
	return pages(one, func(token string) ([]*pgmqv1.Message, string, error) {
		response, err := call(ctx, q.client, repeatable, q.client.raw.Admin.ListMessages, &pgmqv1.ListMessagesRequest{
			Queue: q.name, State: options.State, MsgIds: options.MsgIDs, PageSize: int32(options.PageSize), PageToken: token,
		})
		return response.GetMessages(), response.GetNextPageToken(), err
	})
}

// ArchiveFilter tells which messages of an archive are meant: those that meet all conditions that are set. The zero
// value means the whole archive.
type ArchiveFilter struct {
	MsgIDs []int64
	// ArchivedAfter includes its moment, ArchivedBefore does not.
	ArchivedAfter  time.Time
	ArchivedBefore time.Time
}

func (f ArchiveFilter) encode() *pgmqv1.ArchiveFilter {
	return &pgmqv1.ArchiveFilter{MsgIds: f.MsgIDs, ArchivedAfter: timestamp(f.ArchivedAfter), ArchivedBefore: timestamp(f.ArchivedBefore)}
}

// ArchivedMessage is a message of an archive.
type ArchivedMessage struct {
	*Message
	ArchivedAt time.Time
}

// ListArchivedMessages lists messages of the queue's archive, ordered by id. A pageSize of 0 means 100.
func (q *Queue) ListArchivedMessages(ctx context.Context, filter ArchiveFilter, pageSize int) iter.Seq2[ArchivedMessage, error] {
	one := func(m *pgmqv1.ArchivedMessage) ArchivedMessage {
		return ArchivedMessage{q.client.message(q.name, m.GetMessage()), moment(m.GetArchivedAt())}
	}
	return pages(one, func(token string) ([]*pgmqv1.ArchivedMessage, string, error) {
		response, err := call(ctx, q.client, repeatable, q.client.raw.Admin.ListArchivedMessages, &pgmqv1.ListArchivedMessagesRequest{
			Queue: q.name, Filter: filter.encode(), PageSize: int32(pageSize), PageToken: token,
		})
		return response.GetMessages(), response.GetNextPageToken(), err
	})
}

// Moved tells how many messages a call has moved or deleted, and whether more may be there: call it again then.
type Moved struct {
	Count int64
	More  bool
}

// DeleteArchivedMessages deletes messages of the queue's archive for good: at most so many, 10,000 for 0.
func (q *Queue) DeleteArchivedMessages(ctx context.Context, filter ArchiveFilter, maxMessages int) (Moved, error) {
	request := &pgmqv1.DeleteArchivedMessagesRequest{Queue: q.name, Filter: filter.encode(), MaxMessages: int32(maxMessages)}
	response, err := call(ctx, q.client, once, q.client.raw.Admin.DeleteArchivedMessages, request)
	return Moved{response.GetDeletedCount(), response.GetMore()}, err
}

// ReplayOptions say what a replay moves, and where. The zero value moves up to 10,000 messages back into the queue.
type ReplayOptions struct {
	Filter      ArchiveFilter
	TargetQueue string
	MaxMessages int
}

// Replay moves messages from the queue's archive back into the queue, or into another one, as new messages.
func (q *Queue) Replay(ctx context.Context, options ReplayOptions) (Moved, error) {
	response, err := call(ctx, q.client, once, q.client.raw.Admin.ReplayArchivedMessages, &pgmqv1.ReplayArchivedMessagesRequest{
		Queue: q.name, Filter: options.Filter.encode(), TargetQueue: options.TargetQueue, MaxMessages: int32(options.MaxMessages),
	})
	return Moved{response.GetReplayedCount(), response.GetMore()}, err
}

// RedriveOptions say what a redrive moves, and where. The zero value moves up to 10,000 messages back to where each
// came from.
type RedriveOptions struct {
	MsgIDs      []int64
	TargetQueue string
	MaxMessages int
}

// Redrive moves messages from this queue, a dead-letter queue, back to the queues that they came from, or to another.
func (q *Queue) Redrive(ctx context.Context, options RedriveOptions) (Moved, error) {
	response, err := call(ctx, q.client, once, q.client.raw.Admin.RedriveMessages, &pgmqv1.RedriveMessagesRequest{
		DeadLetterQueue: q.name, MsgIds: options.MsgIDs, TargetQueue: options.TargetQueue, MaxMessages: int32(options.MaxMessages),
	})
	return Moved{response.GetMovedCount(), response.GetMore()}, err
}

// CreateFifoIndex creates pgmq's index for grouped reads. It can take long.
func (c *Client) CreateFifoIndex(ctx context.Context, queue string) error {
	request := &pgmqv1.CreateFifoIndexRequest{Target: &pgmqv1.CreateFifoIndexRequest_Queue{Queue: queue}}
	_, err := call(ctx, c, long, c.raw.Admin.CreateFifoIndex, request)
	return err
}

// CreateFifoIndexes creates the index for all queues. It can take long.
func (c *Client) CreateFifoIndexes(ctx context.Context) error {
	request := &pgmqv1.CreateFifoIndexRequest{Target: &pgmqv1.CreateFifoIndexRequest_AllQueues{AllQueues: true}}
	_, err := call(ctx, c, long, c.raw.Admin.CreateFifoIndex, request)
	return err
}

// ConvertArchivePartitioned makes a queue's archive a partitioned table. It can take long.
func (c *Client) ConvertArchivePartitioned(ctx context.Context, queue string, partitioning *Partitioning) error {
	_, err := call(ctx, c, long, c.raw.Admin.ConvertArchivePartitioned, &pgmqv1.ConvertArchivePartitionedRequest{
		Queue: queue, Partitioning: partitioning,
	})
	return err
}

// EnableNotifications makes Postgres notify plain SQL listeners of a queue's inserts, at most once in an interval; 0
// means 250 ms.
func (c *Client) EnableNotifications(ctx context.Context, queue string, throttleInterval time.Duration) (*pgmqv1.NotificationSettings, error) {
	response, err := call(ctx, c, once, c.raw.Admin.EnableNotifications, &pgmqv1.EnableNotificationsRequest{
		Queue: queue, ThrottleInterval: span(throttleInterval),
	})
	return response.GetSettings(), err
}

// UpdateNotifications changes the interval of a queue that notifies.
func (c *Client) UpdateNotifications(ctx context.Context, queue string, throttleInterval time.Duration) (*pgmqv1.NotificationSettings, error) {
	response, err := call(ctx, c, once, c.raw.Admin.UpdateNotifications, &pgmqv1.UpdateNotificationsRequest{
		Queue: queue, ThrottleInterval: span(throttleInterval),
	})
	return response.GetSettings(), err
}

// DisableNotifications ends the notifications of a queue.
func (c *Client) DisableNotifications(ctx context.Context, queue string) error {
	_, err := call(ctx, c, once, c.raw.Admin.DisableNotifications, &pgmqv1.DisableNotificationsRequest{Queue: queue})
	return err
}

// ListNotifications lists the queues that notify, ordered by name.
func (c *Client) ListNotifications(ctx context.Context, options ListOptions) iter.Seq2[*pgmqv1.NotificationSettings, error] {
	return pages(itself, func(token string) ([]*pgmqv1.NotificationSettings, string, error) {
		response, err := call(ctx, c, repeatable, c.raw.Admin.ListNotifications, &pgmqv1.ListNotificationsRequest{
			PageSize: int32(options.PageSize), PageToken: token, Prefix: options.Prefix,
		})
		return response.GetNotifications(), response.GetNextPageToken(), err
	})
}

// ListClientsOptions say which clients are listed. The zero value means all.
type ListClientsOptions struct {
	// Queue lists only clients of this queue.
	Queue string
	// Prefix is what their names start with.
	Prefix   string
	PageSize int
}

// ListClients lists who sent or consumed within the last minute, on all servers of the database.
func (c *Client) ListClients(ctx context.Context, options ListClientsOptions) iter.Seq2[*pgmqv1.Client, error] {
	return pages(itself, func(token string) ([]*pgmqv1.Client, string, error) {
		response, err := call(ctx, c, repeatable, c.raw.Admin.ListClients, &pgmqv1.ListClientsRequest{
			PageSize: int32(options.PageSize), PageToken: token, Queue: options.Queue, Prefix: options.Prefix,
		})
		return response.GetClients(), response.GetNextPageToken(), err
	})
}

// InstallPgmq installs pgmq in the database, or upgrades it, and tells the versions before and after.
func (c *Client) InstallPgmq(ctx context.Context) (previous, current string, err error) {
	response, err := call(ctx, c, once, c.raw.Admin.InstallPgmq, &pgmqv1.InstallPgmqRequest{})
	return response.GetPreviousVersion(), response.GetPgmqVersion(), err
}

// GetServerInfo tells versions, what works with them, and what the server has to do at the moment.
func (c *Client) GetServerInfo(ctx context.Context) (*pgmqv1.GetServerInfoResponse, error) {
	return call(ctx, c, repeatable, c.raw.Queue.GetServerInfo, &pgmqv1.GetServerInfoRequest{})
}

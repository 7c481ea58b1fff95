package pgmq

import (
	"context"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// EventKind is what happened to a queue.
type EventKind = pgmqv1.QueueEventKind

const (
	// EventSent: messages were sent, visible or delayed.
	EventSent = pgmqv1.QueueEventKind_QUEUE_EVENT_KIND_SENT
	// EventVisible: messages became visible.
	EventVisible = pgmqv1.QueueEventKind_QUEUE_EVENT_KIND_VISIBLE
)

// Event is something that happened to a queue, once or several times: a hint to look, not a count.
type Event = pgmqv1.QueueEvent

// Watcher tells what happens to queues, without reading from them.
type Watcher struct {
	client *Client
	queues []string
	ctx    context.Context
	end    context.CancelFunc
	stream grpc.ServerStreamingClient[pgmqv1.WatchResponse]
	// Ends the stream.
	cancel context.CancelFunc
}

// Watch watches 1 to 100 queues until the context ends. What happens after Watch returns is told by [Watcher.Events].
func (c *Client) Watch(ctx context.Context, queues ...string) (*Watcher, error) {
	w := &Watcher{client: c, queues: queues}
	w.ctx, w.end = context.WithCancel(ctx)
	known := context.AfterFunc(c.closing.life, w.end)
	context.AfterFunc(w.ctx, func() { known() })
	if failure := repeat(ctx, true, w.open); failure != nil {
		w.end()
		return nil, failure
	}
	return w, nil
}

// Watch is [Client.Watch] for this queue.
func (q *Queue) Watch(ctx context.Context) (*Watcher, error) { return q.client.Watch(ctx, q.name) }

// open opens a stream, and waits until the server has confirmed it.
func (w *Watcher) open() *Error {
	if w.client.closing.isBegun() {
		return isClosed()
	}
	ctx, cancel := context.WithCancel(w.ctx)
	w.cancel = cancel
	request := &pgmqv1.WatchRequest{Queues: w.queues, HeartbeatInterval: durationpb.New(heartbeatInterval)}
	stream, err := w.client.raw.Queue.Watch(ctx, request)
	w.stream = stream
	for err == nil {
		var response *pgmqv1.WatchResponse
		if response, err = w.receive(); response.GetStarted() != nil {
			return nil
		}
	}
	cancel()
	if err == io.EOF {
		return &Error{Code: codes.Unavailable, Message: "the stream ended before it had begun"}
	}
	return newError(err, nil, false)
}

// receive waits for one reply, and not for longer than silence means that the stream is dead.
func (w *Watcher) receive() (*pgmqv1.WatchResponse, error) {
	silence := time.AfterFunc(2*heartbeatInterval, w.cancel)
	defer silence.Stop()
	return w.stream.Recv()
}

// Events gives what happens, until the context of the watch ends, or the loop is left. A stream that breaks or ends as
// planned is opened again; what happened meanwhile is not told, so look at the queues now and then all the same. An
// error is the last thing that comes; with [Client.Close] the loop ends without one. Use it once.
func (w *Watcher) Events() iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		defer w.end()
		for {
			response, err := w.receive()
			for _, event := range response.GetEvents() {
				if !yield(event, nil) {
					return
				}
			}
			if err == nil {
				continue
			}
			w.cancel()
			failure := newError(err, nil, false)
			for failures := 0; failure != nil && !failure.lasting() && w.ctx.Err() == nil; failures++ {
				sleep(w.ctx, backOff(failures, failure.RetryDelay))
				failure = w.open()
			}
			if w.client.closing.life.Err() != nil {
				return
			}
			if failure != nil {
				yield(nil, failure)
				return
			}
		}
	}
}

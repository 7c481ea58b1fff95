package pgmq

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
)

// closing is the end of a client, and what is to be ended with it.
type closing struct {
	// Ends with the client's Close, when the handlers have ended: nothing is called any more then.
	life context.Context
	end  context.CancelFunc

	mu        sync.Mutex
	begun     bool
	closed    atomic.Bool
	consumers map[*Consumer]struct{}
	producers map[*Producer]struct{}
}

func newClosing() *closing {
	e := &closing{consumers: map[*Consumer]struct{}{}, producers: map[*Producer]struct{}{}}
	e.life, e.end = context.WithCancel(context.Background())
	return e
}

// enter notes what Close is to end. It is false once Close was called.
func enter[T comparable](e *closing, open map[T]struct{}, one T) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.begun {
		return false
	}
	open[one] = struct{}{}
	return true
}

// forget forgets what has ended by itself.
func forget[T comparable](e *closing, open map[T]struct{}, one T) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(open, one)
}

// begin gives what is open where nobody has called Close before.
func (e *closing) begin() (consumers []*Consumer, producers []*Producer, first bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first = !e.begun
	e.begun = true
	return slices.Collect(maps.Keys(e.consumers)), slices.Collect(maps.Keys(e.producers)), first
}

func (e *closing) isBegun() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.begun
}

// isClosed is the error of whatever is called after Close.
func isClosed() *Error { return refused(codes.Canceled, "", "the client is closed", nil) }

// Close ends the client: loops over its consumers and watchers end, and each [Queue.Handle] returns when its handlers
// have ended, which may still call. Close waits for them, and for sends under way, but no longer than the client's
// timeout, as it does in a handler; then it ends the connection, and with it all other calls. What a consumer's loop has
// in hand is not waited for: [Consumer.Stop] does.
//
// From then on everything is refused with codes.Canceled, and nothing is sent. Another Close does nothing.
func (c *Client) Close() error {
	consumers, producers, first := c.closing.begin()
	if !first {
		return nil
	}
	ctx, cancel := c.withDeadline(context.Background(), 0)
	defer cancel()
	for _, consumer := range consumers {
		consumer.close()
	}
	for _, consumer := range consumers {
		select {
		case <-consumer.done:
		case <-ctx.Done():
			consumer.cancel()
			<-consumer.done
		}
	}
	c.sends.close(ctx)
	var ending sync.WaitGroup
	for _, producer := range producers {
		ending.Add(1)
		go func() {
			defer ending.Done()
			_ = producer.Close(ctx)
		}()
	}
	ending.Wait()
	c.closing.closed.Store(true)
	c.closing.end()
	return c.connection.Close()
}

// close takes no more messages. A consumer without handlers ends at once; one with them, when they have ended.
func (c *Consumer) close() {
	c.mu.Lock()
	c.stopping = true
	c.changed.Broadcast()
	c.mu.Unlock()
	if !c.handled {
		c.cancel()
	}
}

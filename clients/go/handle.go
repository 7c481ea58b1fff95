package pgmq

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// longestRetryDelay is the longest delay of a message whose handler failed where nobody gives one.
const longestRetryDelay = time.Minute

var errGoexit = errors.New("the handler has ended its goroutine")

// HandleOptions say how messages are handled. The zero value handles one at a time and deletes it.
type HandleOptions struct {
	ConsumeOptions
	// Concurrency is how many messages are handled at once. 0 means 1, and less is refused.
	Concurrency int
	// RetryDelay is how long a message whose handler failed stays invisible: up to 12 hours, [Zero] not at all. 0 leaves
	// that to the queue's backoff; where it has none, it is about a second after the first failure, twice as long after
	// each further one, and at most a minute.
	RetryDelay time.Duration
	// Archive archives what was handled, in place of deleting it.
	Archive bool
}

// Handle handles the messages of the queue until the context ends, and settles them: where the handler returns nil the
// message is deleted, or archived; where it returns an error the message is released, after a delay. A handler may
// settle its message by itself, too.
//
// When the context ends, or the client is closed, no more messages are taken, those in hand are finished, and Handle
// returns nil. The context of a handler does not end with it. A handler that ends its goroutine has failed.
//
//	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//	defer stop()
//	err := client.Queue("orders").Handle(ctx, handle, pgmq.HandleOptions{Concurrency: 8})
func (q *Queue) Handle(ctx context.Context, handler func(context.Context, *Message) error, options HandleOptions) error {
	if handler == nil {
		return refused(codes.InvalidArgument, "handler", "there is no handler", nil)
	}
	if err := options.check(); err != nil {
		return err
	}
	lasting := context.WithoutCancel(ctx)
	consumer := q.consume(lasting, options.ConsumeOptions, true)
	success := settlement{action: actionDelete}
	if options.Archive {
		success.action = actionArchive
	}
	var working, settling sync.WaitGroup
	settle := func(message *Message, err error) {
		outcome := success
		if err != nil {
			q.client.logger.Warn("pgmq: a handler failed", "queue", q.name, "msg_id", message.MsgID, "read_ct", message.ReadCt, "error", err)
			outcome = settlement{action: actionRelease, span: options.RetryDelay}
			if outcome.span == 0 {
				outcome.span = consumer.retryDelay(message)
			}
		}
		if consumer.isSettled(message) {
			return
		}
		// The next message need not wait for the answer: how many are unsettled is bounded.
		settling.Add(1)
		go func() {
			defer settling.Done()
			if _, err := message.settle(lasting, outcome); err != nil {
				q.client.logger.Warn("pgmq: a message could not be settled, and will come back", "queue", q.name, "msg_id", message.MsgID, "error", err)
				consumer.letGo(lasting, message, err)
			}
		}()
	}
	handle := func(message *Message) {
		err := errGoexit
		defer func() { settle(message, err) }()
		err = handler(lasting, message)
	}
	var work func()
	work = func() {
		over := false
		defer func() {
			if !over {
				// The handler has ended this goroutine.
				go work()
				return
			}
			working.Done()
		}()
		for message, err := range consumer.Messages(ctx) {
			if err != nil {
				break
			}
			handle(message)
		}
		over = true
	}
	for range max(options.Concurrency, 1) {
		working.Add(1)
		go work()
	}
	working.Wait()
	settling.Wait()
	lasting, cancel := context.WithTimeout(lasting, farewell)
	defer cancel()
	return consumer.Stop(lasting)
}

// retryDelay is how long a message whose handler failed stays invisible where the application leaves that open: 0 for the
// queue's backoff. Without one, a message that always fails must not come again and again at once.
func (c *Consumer) retryDelay(m *Message) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hasBackoff {
		return 0
	}
	delay := min(time.Second<<min(max(m.ReadCt-1, 0), 10), longestRetryDelay)
	return delay - rand.N(delay/5)
}

package pgmq

import (
	"context"
	"sync"
	"time"
)

// HandleOptions say how messages are handled. The zero value handles one at a time and deletes it.
type HandleOptions struct {
	ConsumeOptions
	// Concurrency is how many messages are handled at once. 0 means 1.
	Concurrency int
	// RetryDelay is how long a message whose handler failed stays invisible. 0 leaves that to the queue's backoff, and
	// without one it comes back at once.
	RetryDelay time.Duration
	// Archive archives what was handled, in place of deleting it.
	Archive bool
}

// Handle handles the messages of the queue until the context ends, and settles them: where the handler returns nil the
// message is deleted, or archived; where it returns an error the message is released, after a delay. A handler may
// settle its message by itself, too.
//
// When the context ends, no more messages are taken, those in hand are finished, and Handle returns nil. The context
// of a handler does not end with it.
//
//	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//	defer stop()
//	err := client.Queue("orders").Handle(ctx, handle, pgmq.HandleOptions{Concurrency: 8})
func (q *Queue) Handle(ctx context.Context, handler func(context.Context, *Message) error, options HandleOptions) error {
	lasting := context.WithoutCancel(ctx)
	consumer := q.Consume(lasting, options.ConsumeOptions)
	success := settlement{action: actionDelete}
	if options.Archive {
		success.action = actionArchive
	}
	var working, settling sync.WaitGroup
	handle := func(message *Message) {
		outcome := success
		if err := handler(lasting, message); err != nil {
			q.client.logger.Warn("pgmq: a handler failed", "queue", q.name, "msg_id", message.MsgID, "read_ct", message.ReadCt, "error", err)
			outcome = settlement{action: actionRelease, span: options.RetryDelay}
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
	for range max(options.Concurrency, 1) {
		working.Add(1)
		go func() {
			defer working.Done()
			for message, err := range consumer.Messages(ctx) {
				if err != nil {
					return
				}
				handle(message)
			}
		}()
	}
	working.Wait()
	settling.Wait()
	lasting, cancel := context.WithTimeout(lasting, farewell)
	defer cancel()
	return consumer.Stop(lasting)
}

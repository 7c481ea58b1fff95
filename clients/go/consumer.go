package pgmq

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

const (
	defaultMaxInFlight = 100
	heartbeatInterval  = 25 * time.Second
	// How long it takes at most to give messages back when a consumer is cancelled.
	farewell = 5 * time.Second
)

// ConsumeOptions say how messages are consumed. The zero value takes up to 100 at a time, as the queue's policy says.
type ConsumeOptions struct {
	// MaxInFlight is the most messages that the application has and has not settled: up to 1,000. 0 means 100.
	MaxInFlight int
	// VisibilityTimeout is how long the messages stay invisible to others.
	VisibilityTimeout time.Duration
	Ordering          Ordering
	// Conditional takes only messages whose body contains this value, or [Text].
	Conditional any
	// NoAutoExtend leaves the visibility timeout as it is while a message is in hand. Otherwise it is extended again and
	// again, for up to MaxExtension: an hour without it.
	NoAutoExtend bool
	MaxExtension time.Duration
}

// Consumer is a stream of the messages of a queue that survives restarts of servers, networks and databases. Messages
// that are in hand stay valid meanwhile, and settle themselves by a call of their own where there is no stream.
//
// Many goroutines may take messages from one consumer.
type Consumer struct {
	queue *Queue
	// Whether [Queue.Handle] stops it.
	handled bool
	start   *pgmqv1.ConsumeStart
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}
	// The context of the streams, which outlives the consumer's own until what was not taken is given back.
	streams    context.Context
	endStreams context.CancelFunc

	// mu guards what follows, and changed wakes those who wait for it to change.
	mu      sync.Mutex
	changed *sync.Cond
	// What was received and not yet taken.
	buffer []*delivery
	// What was taken and is not settled, as far as the client knows.
	held map[*Message]*delivery
	// The stream that commands go over; nil while there is none.
	session  *session
	stopping bool
	// Whether the stream is over for good, and why if nobody has asked for it.
	ended bool
	err   error
	// What the server has told last.
	visibilityTimeout time.Duration
	hasBackoff        bool
}

// unseen is what becomes of messages that the application has not taken: they do not count as delivered.
var unseen = settlement{action: pgmqv1.SettleAction_SETTLE_ACTION_GIVE_BACK}

// Consume consumes the queue's messages until the context ends or the consumer is stopped. It connects by itself, and
// goes on until it is told that a repetition cannot help: the queue is missing, or an argument is wrong.
//
// When the context ends, what was not yet taken is released. See [Consumer.Stop] for the gentler end, and
// [Queue.Handle] for a loop that needs neither.
func (q *Queue) Consume(ctx context.Context, options ConsumeOptions) *Consumer {
	return q.consume(ctx, options, false)
}

func (q *Queue) consume(ctx context.Context, options ConsumeOptions, handled bool) *Consumer {
	conditional, err := q.client.conditional(options.Conditional)
	c := &Consumer{
		queue:   q,
		handled: handled,
		start: &pgmqv1.ConsumeStart{
			Queue:             q.name,
			VisibilityTimeout: span(options.VisibilityTimeout),
			Conditional:       conditional,
			Ordering:          options.Ordering,
			MaxInFlight:       int32(options.MaxInFlight),
			HeartbeatInterval: durationpb.New(heartbeatInterval),
			AutoExtend:        !options.NoAutoExtend,
			MaxExtension:      span(options.MaxExtension),
		},
		done: make(chan struct{}),
		held: map[*Message]*delivery{},
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.streams, c.endStreams = context.WithCancel(context.WithoutCancel(ctx))
	c.changed = sync.NewCond(&c.mu)
	if err == nil && !enter(q.client.closing, q.client.closing.consumers, c) {
		err = isClosed()
	}
	if err != nil {
		c.end(newError(err, nil, false))
		c.cancel()
	}
	go c.run()
	return c
}

// Messages gives messages as they come, until the consumer is stopped. An error is the last thing that comes: what
// has ended the consumer, or the context's where that has ended.
//
//	for message, err := range consumer.Messages(ctx) {
//		if err != nil {
//			return err
//		}
//		…
//		message.Delete(ctx)
//	}
//
// Leaving the loop does not stop the consumer.
func (c *Consumer) Messages(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		defer context.AfterFunc(ctx, c.wake)()
		for {
			message, err := c.take(ctx)
			if err != nil {
				yield(nil, err)
				return
			}
			if message == nil || !yield(message, nil) {
				return
			}
		}
	}
}

// take waits for a message. Without one and without an error, the consumer is stopped.
func (c *Consumer) take(ctx context.Context) (*Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return nil, newError(ctx.Err(), nil, false)
		}
		if c.stopping || c.ended {
			return nil, c.err
		}
		if len(c.buffer) > 0 && !c.full() {
			next := c.buffer[0]
			c.buffer[0] = nil
			c.buffer = c.buffer[1:]
			c.held[next.message] = next
			return next.message, nil
		}
		c.changed.Wait()
	}
}

func (c *Consumer) wake() {
	c.mu.Lock()
	c.changed.Broadcast()
	c.mu.Unlock()
}

// settle settles a message over the stream, and by a unary call while there is none or if it breaks. The contract lets
// settlements be repeated.
func (c *Consumer) settle(ctx context.Context, m *Message, s settlement) (Outcome, error) {
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	ctx, cancel := c.queue.client.withDeadline(ctx, 0)
	defer cancel()
	if session != nil {
		result, failure := session.do(ctx, m.Receipt, s)
		if failure == nil {
			c.settled(m, s, result.Outcome)
			return result.Outcome, nil
		}
		if failure.Code != codes.Unavailable || !sleep(ctx, failure.RetryDelay) {
			return 0, failure
		}
	}
	if s.action == actionExtend && s.span == 0 {
		c.mu.Lock()
		s.span = c.visibilityTimeout
		c.mu.Unlock()
	}
	results, err := c.queue.client.settle(ctx, m.Queue, Messages(m), s)
	if err != nil {
		return 0, err
	}
	return results[0].Outcome, nil
}

// settled notes what became of a message.
func (c *Consumer) settled(m *Message, s settlement, outcome Outcome) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.settled = m.settled || s.action != actionExtend
	d := c.held[m]
	switch {
	case d == nil:
	case s.action != actionExtend || outcome != Done:
		delete(c.held, m)
		if c.stopping || len(c.buffer) > 0 {
			c.changed.Broadcast()
		}
	case s.span > 0:
		d.expires = later(d.expires, time.Now().Add(s.span))
	}
}

// letGo has a message that could not be settled come back after its visibility timeout. Only a command ends its
// extension by the server, and frees its place there.
func (c *Consumer) letGo(ctx context.Context, m *Message, failure error) {
	c.mu.Lock()
	hidden := settlement{action: actionRelease, span: c.visibilityTimeout}
	c.mu.Unlock()
	for failures := range maxRepeats {
		sleep(ctx, backOff(failures, newError(failure, nil, true).retryDelay()))
		if _, failure = m.settle(ctx, hidden); failure == nil {
			return
		}
	}
	// Whoever stops the consumer need not wait for it: the server keeps it no longer than the stream lasts.
	c.settled(m, hidden, Done)
}

// Stop takes no more messages, and returns when those in hand are settled and the stream is over: all loops over
// [Consumer.Messages] end. What was received and not yet taken is released at once. When the context ends before that,
// Stop waits no longer.
//
// It returns what has ended the consumer before, if something has.
func (c *Consumer) Stop(ctx context.Context) error {
	defer context.AfterFunc(ctx, c.wake)()
	c.mu.Lock()
	c.stopping = true
	c.changed.Broadcast()
	c.mu.Unlock()
	c.giveBack(ctx)
	c.mu.Lock()
	for len(c.held) > 0 && !c.ended && ctx.Err() == nil {
		c.changed.Wait()
	}
	session, err := c.session, c.err
	c.mu.Unlock()
	if session != nil {
		session.leave(ctx)
	}
	c.cancel()
	<-c.done
	return err
}

// giveBack has the server send no more, and gives back what the application has not taken: over the stream, or by
// unary calls while there is none. If it cannot, the messages come back by themselves.
func (c *Consumer) giveBack(ctx context.Context) {
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	if session != nil {
		session.stop(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	receipts := convert(c.buffer, func(d *delivery) string { return d.message.Receipt })
	c.buffer = nil
	c.mu.Unlock()
	if session != nil {
		commands := session.put(unseen, receipts...)
		receipts = nil
		for _, command := range commands {
			if answer := command.wait(ctx); answer.failure != nil {
				receipts = append(receipts, command.receipt)
			}
		}
	}
	for some := range slices.Chunk(receipts, maxReceipts) {
		if _, err := c.queue.Release(ctx, Receipts(some...), Zero); err != nil {
			c.queue.client.logger.Warn("pgmq: messages that were not taken could not be given back", "queue", c.queue.name, "error", err)
		}
	}
}

// run opens streams, one after the other, until there is to be none.
func (c *Consumer) run() {
	defer forget(c.queue.client.closing, c.queue.client.closing.consumers, c)
	defer close(c.done)
	defer c.cancel()
	go c.keep()
	var session *session
	for failures := 0; c.ctx.Err() == nil; failures++ {
		session = openSession(c)
		select {
		case <-session.leaving:
		case <-c.ctx.Done():
			continue
		}
		if c.isStopping() {
			<-c.ctx.Done()
			continue
		}
		closing, failure := session.why()
		if failure != nil && failure.lasting() {
			c.end(failure)
			break
		}
		if session.visibilityTimeout > 0 {
			failures = 0
		}
		span := backOff(failures, failure.retryDelay())
		if closing != nil {
			span = closing.GetRetryDelay().AsDuration()
		}
		c.queue.client.logger.Info("pgmq: a consumer's stream has ended", "queue", c.queue.name, "reason", closing.GetReason(), "failure", failure, "opened_again_in", span)
		sleep(c.ctx, span)
	}
	c.end(newError(c.ctx.Err(), nil, false))
	c.leave()
	c.endStreams()
	if session != nil {
		<-session.over
	}
}

// leave ends the consumer's stream without losing anything.
func (c *Consumer) leave() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), farewell)
	defer cancel()
	c.giveBack(ctx)
	c.mu.Lock()
	session := c.session
	c.mu.Unlock()
	if session != nil {
		session.leave(ctx)
	}
}

func (c *Consumer) isStopping() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}

func (c *Consumer) isSettled(m *Message) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return m.settled
}

// opened makes a stream the one that commands go over.
func (c *Consumer) opened(session *session) {
	c.mu.Lock()
	c.session = session
	c.visibilityTimeout = session.visibilityTimeout
	c.hasBackoff = session.started.GetHasRetryBackoff()
	stopping := c.stopping
	c.changed.Broadcast()
	c.mu.Unlock()
	if stopping {
		go c.giveBack(c.ctx)
	}
}

// end ends the consumer: nothing more comes. The first reason counts, and none where it was stopped.
func (c *Consumer) end(failure *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failure != nil && !c.ended && !c.stopping {
		c.err = failure
	}
	c.ended = true
	c.changed.Broadcast()
}

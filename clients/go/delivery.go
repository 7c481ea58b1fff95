package pgmq

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

const (
	defaultMaxExtension = time.Hour
	// How often a consumer looks after messages whose time runs out.
	keepInterval = 250 * time.Millisecond
)

// delivery is a message with what becomes of it on the way.
type delivery struct {
	message *Message
	// The stream that it came over, whose server extends it; nil once that is over.
	session *session
	// When others can read it, by the client's clock, unless it is extended.
	expires time.Time
	// When it is extended no more.
	last time.Time
	// Whether an extension is under way from here.
	extending bool
}

// deliver takes what has come over a stream.
func (c *Consumer) deliver(from *session, messages []*pgmqv1.Message) {
	now := time.Now()
	last := defaultMaxExtension
	if c.start.MaxExtension != nil {
		last = c.start.MaxExtension.AsDuration()
	}
	deliveries := convert(messages, func(m *pgmqv1.Message) *delivery {
		message := c.queue.client.message(c.queue.name, m)
		message.consumer = c
		return &delivery{message: message, session: from, expires: now.Add(from.visibilityTimeout), last: now.Add(last)}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buffer = append(c.buffer, deliveries...)
	c.changed.Broadcast()
}

// full tells whether the application has all the messages that it may have. The server sees to that, but for those
// that came over an earlier stream: it does not count them.
func (c *Consumer) full() bool {
	limit := int(c.start.MaxInFlight)
	if limit == 0 {
		limit = defaultMaxInFlight
	}
	if len(c.held) < limit {
		return false
	}
	for _, d := range c.held {
		if d.session == nil || d.session != c.session {
			return true
		}
	}
	return false
}

// lost notes that a stream is over. What came over it was last extended at most half of its timeout ago.
func (c *Consumer) lost(session *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == session {
		c.session = nil
	}
	left := time.Now().Add(session.visibilityTimeout / 2)
	for _, d := range c.all() {
		if d.session == session {
			d.session = nil
			if c.start.AutoExtend && left.Before(d.last) {
				d.expires = later(d.expires, left)
			}
		}
	}
	c.changed.Broadcast()
}

// keep looks after messages whose time runs out. The server extends those of the stream that is open; those that came
// over an earlier one are extended from here.
func (c *Consumer) keep() {
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			c.mu.Lock()
			session := c.session
			older := c.runningOut(now)
			c.mu.Unlock()
			c.extend(session, older)
		case <-c.ctx.Done():
			return
		}
	}
}

// runningOut forgets messages that others can read by now, and gives those that are to be extended.
func (c *Consumer) runningOut(now time.Time) []*delivery {
	forgotten := false
	gone := func(d *delivery) bool {
		served := c.start.AutoExtend && d.session != nil && now.Before(d.last)
		over := !served && now.After(d.expires)
		forgotten = forgotten || over
		return over
	}
	c.buffer = slices.DeleteFunc(c.buffer, gone)
	maps.DeleteFunc(c.held, func(_ *Message, d *delivery) bool { return gone(d) })
	if forgotten {
		c.changed.Broadcast()
	}
	var older []*delivery
	if c.session == nil || !c.start.AutoExtend {
		return nil
	}
	for _, d := range c.all() {
		if d.session == nil && !d.extending && now.Before(d.last) && d.expires.Sub(now) < c.session.visibilityTimeout*2/3 {
			d.extending = true
			older = append(older, d)
		}
	}
	return older
}

// extend extends messages of streams that are over.
func (c *Consumer) extend(session *session, older []*delivery) {
	for _, d := range older {
		go func() {
			s := settlement{action: actionExtend, span: session.visibilityTimeout}
			ctx, cancel := context.WithTimeout(c.ctx, s.span)
			defer cancel()
			until := time.Now().Add(s.span)
			result, failure := session.do(ctx, d.message.Receipt, s)
			c.mu.Lock()
			defer c.mu.Unlock()
			d.extending = false
			if failure == nil && result.Outcome == Done {
				d.expires = until
			}
		}()
	}
}

// all gives everything that was received and is not settled.
func (c *Consumer) all() []*delivery {
	return slices.AppendSeq(slices.Clone(c.buffer), maps.Values(c.held))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

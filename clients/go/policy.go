package pgmq

import (
	"time"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// Policy is what holds in a queue where a call leaves it open. What is zero is left to the server's default.
type Policy struct {
	DefaultVisibilityTimeout time.Duration
	DefaultDelay             time.Duration
	DefaultWait              time.Duration
	MaxMessageBytes          int
	DeadLetter               *DeadLetterPolicy
	RetryBackoff             *RetryBackoff
	DeduplicationWindow      time.Duration
	DefaultOrdering          Ordering
	// ArchiveRetention is how long archived messages are kept; for ever without it.
	ArchiveRetention time.Duration
}

// DeadLetterPolicy moves messages to another queue once they were handed over MaxReceives times and not settled.
type DeadLetterPolicy = pgmqv1.DeadLetterPolicy

// RetryBackoff is how long a released message is hidden: Minimum the first time, each time Multiplier (2 without it)
// times as long, and never longer than Maximum. Jitter is the share that is drawn at random: 0 to 1.
type RetryBackoff struct {
	Minimum    time.Duration
	Maximum    time.Duration
	Multiplier float64
	Jitter     float64
}

func (p *Policy) encode() *pgmqv1.QueuePolicy {
	if p == nil {
		return nil
	}
	encoded := &pgmqv1.QueuePolicy{
		DefaultVisibilityTimeout: span(p.DefaultVisibilityTimeout),
		DefaultDelay:             span(p.DefaultDelay),
		DefaultWait:              span(p.DefaultWait),
		DeadLetter:               p.DeadLetter,
		DeduplicationWindow:      span(p.DeduplicationWindow),
		DefaultOrdering:          p.DefaultOrdering,
		ArchiveRetention:         span(p.ArchiveRetention),
	}
	if p.MaxMessageBytes != 0 {
		limit := int32(p.MaxMessageBytes)
		encoded.MaxMessageBytes = &limit
	}
	if b := p.RetryBackoff; b != nil {
		encoded.RetryBackoff = &pgmqv1.RetryBackoff{Minimum: span(b.Minimum), Maximum: span(b.Maximum), Multiplier: b.Multiplier, Jitter: b.Jitter}
	}
	return encoded
}

// Kind is how a queue's table is stored.
type Kind = pgmqv1.QueueKind

// The kinds of queues; the zero value means [Standard].
const (
	Standard    = pgmqv1.QueueKind_QUEUE_KIND_STANDARD
	Unlogged    = pgmqv1.QueueKind_QUEUE_KIND_UNLOGGED
	Partitioned = pgmqv1.QueueKind_QUEUE_KIND_PARTITIONED
)

// Layout is how a queue's table is laid out.
type Layout = pgmqv1.QueueLayout

// The layouts; the zero value leaves the choice to the server.
const (
	LayoutTuned = pgmqv1.QueueLayout_QUEUE_LAYOUT_TUNED
	LayoutPGMQ  = pgmqv1.QueueLayout_QUEUE_LAYOUT_PGMQ
)

// Partitioning is how a table is cut into partitions, in pgmq's words, such as "10000" or "1 day".
type Partitioning = pgmqv1.Partitioning

// QueueInfo describes a queue; its Policy is nil where the queue has none.
type QueueInfo = pgmqv1.Queue

// Metrics counts the messages of a queue at one moment. In a list, its Error tells why a queue cannot be measured.
type Metrics = pgmqv1.QueueMetrics

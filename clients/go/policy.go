package pgmq

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

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
type DeadLetterPolicy struct {
	Queue       string
	MaxReceives int
}

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
		DeduplicationWindow:      span(p.DeduplicationWindow),
		DefaultOrdering:          p.DefaultOrdering,
		ArchiveRetention:         span(p.ArchiveRetention),
	}
	if p.MaxMessageBytes != 0 {
		limit := int32(p.MaxMessageBytes)
		encoded.MaxMessageBytes = &limit
	}
	if d := p.DeadLetter; d != nil {
		encoded.DeadLetter = &pgmqv1.DeadLetterPolicy{Queue: d.Queue, MaxReceives: int32(d.MaxReceives)}
	}
	if b := p.RetryBackoff; b != nil {
		encoded.RetryBackoff = &pgmqv1.RetryBackoff{Minimum: span(b.Minimum), Maximum: span(b.Maximum), Multiplier: b.Multiplier, Jitter: b.Jitter}
	}
	return encoded
}

func policy(p *pgmqv1.QueuePolicy) *Policy {
	if p == nil {
		return nil
	}
	decoded := &Policy{
		DefaultVisibilityTimeout: p.GetDefaultVisibilityTimeout().AsDuration(),
		DefaultDelay:             p.GetDefaultDelay().AsDuration(),
		DefaultWait:              p.GetDefaultWait().AsDuration(),
		MaxMessageBytes:          int(p.GetMaxMessageBytes()),
		DeduplicationWindow:      p.GetDeduplicationWindow().AsDuration(),
		DefaultOrdering:          p.GetDefaultOrdering(),
		ArchiveRetention:         p.GetArchiveRetention().AsDuration(),
	}
	if d := p.GetDeadLetter(); d != nil {
		decoded.DeadLetter = &DeadLetterPolicy{d.GetQueue(), int(d.GetMaxReceives())}
	}
	if b := p.GetRetryBackoff(); b != nil {
		decoded.RetryBackoff = &RetryBackoff{b.GetMinimum().AsDuration(), b.GetMaximum().AsDuration(), b.GetMultiplier(), b.GetJitter()}
	}
	return decoded
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
type Partitioning struct {
	Interval  string
	Retention string
	Premake   int
}

func (p *Partitioning) encode() *pgmqv1.Partitioning {
	if p == nil {
		return nil
	}
	return &pgmqv1.Partitioning{Interval: p.Interval, Retention: p.Retention, Premake: int32(p.Premake)}
}

// QueueInfo describes a queue.
type QueueInfo struct {
	// ID is another one for each queue that is made, also under the same name.
	ID        int64
	Name      string
	Kind      Kind
	CreatedAt time.Time
	Layout    Layout
	// Policy is nil where the queue has none.
	Policy *Policy
}

func queueInfo(q *pgmqv1.Queue) QueueInfo {
	return QueueInfo{q.GetId(), q.GetName(), q.GetKind(), moment(q.GetCreatedAt()), q.GetLayout(), policy(q.GetPolicy())}
}

// Metrics counts the messages of a queue at one moment. What each number means in full stands in the contract, at
// QueueMetrics.
type Metrics struct {
	Queue          string
	QueueLength    int64
	VisibleLength  int64
	InFlightLength int64
	DelayedLength  int64
	TotalMessages  int64
	// The ages are nil where there is no such message.
	NewestMessageAge        *time.Duration
	OldestMessageAge        *time.Duration
	OldestVisibleMessageAge *time.Duration
	// ArchiveLength is nil unless it was asked for, DefaultPartitionLength unless the queue is partitioned.
	ArchiveLength          *int64
	DefaultPartitionLength *int64
	// What the asked replica has moved itself.
	DeadLetteredCount int64
	RedrivenCount     int64
	ReplayedCount     int64
	ScrapedAt         time.Time
	// Err is why this queue cannot be measured, in a list.
	Err error
}

func metrics(m *pgmqv1.QueueMetrics) Metrics {
	decoded := Metrics{
		Queue:                   m.GetQueue(),
		QueueLength:             m.GetQueueLength(),
		VisibleLength:           m.GetVisibleLength(),
		InFlightLength:          m.GetInFlightLength(),
		DelayedLength:           m.GetDelayedLength(),
		TotalMessages:           m.GetTotalMessages(),
		NewestMessageAge:        age(m.GetNewestMessageAge()),
		OldestMessageAge:        age(m.GetOldestMessageAge()),
		OldestVisibleMessageAge: age(m.GetOldestVisibleMessageAge()),
		DeadLetteredCount:       m.GetDeadLetteredCount(),
		RedrivenCount:           m.GetRedrivenCount(),
		ReplayedCount:           m.GetReplayedCount(),
		ScrapedAt:               moment(m.GetScrapedAt()),
	}
	if m != nil {
		decoded.ArchiveLength, decoded.DefaultPartitionLength = m.ArchiveLength, m.DefaultPartitionLength
	}
	if failure := m.GetError(); failure != nil {
		decoded.Err = commandError(failure)
	}
	return decoded
}

func age(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	span := d.AsDuration()
	return &span
}

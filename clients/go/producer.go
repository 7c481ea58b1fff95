package pgmq

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// What the contract allows.
const defaultWindow = 10_000

// ProducerOptions are the settings of a producer.
type ProducerOptions struct {
	// MaxInFlight is the most messages that are sent and not answered: up to 10,000, which 0 means. Beyond that, Send
	// waits.
	MaxInFlight int
	// Idempotent gives every message a deduplication id that has none.
	Idempotent bool
}

// Producer lets many goroutines share one stream of sends: the fast way to send. The stream is opened with the first
// message, and again when it has ended.
type Producer struct {
	queue   *Queue
	options ProducerOptions
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}
	// Holds one token for each message that is not answered.
	window chan struct{}
	wake   chan struct{}

	mu     sync.Mutex
	closed bool
	// Counts the sends under way, for Close.
	sending sync.WaitGroup
	queued  []*pendingSend
}

// pendingSend is one attempt to send one message.
type pendingSend struct {
	message *pgmqv1.OutgoingMessage
	answer  chan sendAnswer
	// Whether it was taken for a stream, and whether nobody waits for it any more.
	written, abandoned bool
}

type sendAnswer struct {
	sent    Sent
	failure *Error
	// Set where the stream ended before the answer came.
	end streamEnd
}

// streamEnd is how a stream has ended.
type streamEnd int

const (
	// The server has announced it. What it has not answered was not applied.
	planned streamEnd = iota + 1
	// Nobody knows what became of what is unanswered.
	broken
)

// Producer makes a producer for the queue. Close it at the end.
func (q *Queue) Producer(options ProducerOptions) *Producer {
	window := options.MaxInFlight
	if window <= 0 || window > defaultWindow {
		window = defaultWindow
	}
	p := &Producer{
		queue:   q,
		options: options,
		done:    make(chan struct{}),
		window:  make(chan struct{}, window),
		wake:    make(chan struct{}, 1),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	go p.run()
	return p
}

// Send sends one message over the shared stream, and returns when it is in the queue. It waits while too much is
// unanswered.
//
// If the stream breaks, a message that has a deduplication id is sent again until it is answered or the context ends;
// another one fails, with its outcome unknown.
func (p *Producer) Send(ctx context.Context, message any, options ...SendOption) (Sent, error) {
	s, err := p.begin(ctx, message, options)
	if err != nil {
		return Sent{}, err
	}
	s.finish()
	return s.Wait()
}

// SendAsync is Send that does not wait for the answer. Messages that one goroutine sends so are stored in their order,
// unless one of them has to be sent again. An error comes from [Sending.Wait], too.
func (p *Producer) SendAsync(ctx context.Context, message any, options ...SendOption) *Sending {
	s, err := p.begin(ctx, message, options)
	if err != nil {
		s = &Sending{done: make(chan struct{}), err: err}
		close(s.done)
		return s
	}
	go s.finish()
	return s
}

// Sending is a message on its way.
type Sending struct {
	producer *Producer
	ctx      context.Context
	cancel   context.CancelFunc
	message  *pgmqv1.OutgoingMessage
	// The attempt under way.
	pending *pendingSend
	done    chan struct{}
	sent    Sent
	err     error
}

// Wait waits for the answer.
func (s *Sending) Wait() (Sent, error) {
	<-s.done
	return s.sent, s.err
}

// begin waits for room in the window and puts the message on the stream.
func (p *Producer) begin(ctx context.Context, message any, options []SendOption) (*Sending, error) {
	m := outgoing(message, options)
	m.Idempotent = m.Idempotent || p.options.Idempotent
	encoded, err := p.queue.client.outgoingMessage(m)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, refused(codes.FailedPrecondition, "", "the producer is closed", nil)
	}
	p.sending.Add(1)
	p.mu.Unlock()
	ctx, cancel := p.queue.client.withDeadline(ctx, 0)
	select {
	case p.window <- struct{}{}:
	case <-ctx.Done():
		defer cancel()
		p.sending.Done()
		return nil, newError(ctx.Err(), nil, false)
	}
	return &Sending{producer: p, ctx: ctx, cancel: cancel, message: encoded, pending: p.enqueue(encoded), done: make(chan struct{})}, nil
}

// finish waits for the answer, and sends again what may be.
func (s *Sending) finish() {
	keyed, unknown := s.message.DeduplicationId != "", false
	failure := repeat(s.ctx, keyed, func() *Error {
		for {
			answer := s.attempt()
			unknown = unknown || answer.end == broken
			// A message that was not sent, or may be sent twice, waits for the next stream.
			if answer.end == planned || answer.end == broken && keyed {
				continue
			}
			s.sent = answer.sent
			if answer.failure != nil && unknown {
				answer.failure.OutcomeUnknown = true
			}
			return answer.failure
		}
	})
	if failure != nil {
		s.err = failure
	}
	s.cancel()
	<-s.producer.window
	close(s.done)
	s.producer.sending.Done()
}

// enqueue puts a message on the stream.
func (p *Producer) enqueue(message *pgmqv1.OutgoingMessage) *pendingSend {
	pending := &pendingSend{message: message, answer: make(chan sendAnswer, 1)}
	p.mu.Lock()
	p.queued = append(p.queued, pending)
	p.mu.Unlock()
	p.signal()
	return pending
}

// attempt waits for an answer.
func (s *Sending) attempt() sendAnswer {
	p, pending := s.producer, s.pending
	if pending == nil {
		pending = p.enqueue(s.message)
	}
	s.pending = nil
	err := context.Canceled
	select {
	case answer := <-pending.answer:
		return answer
	case <-s.ctx.Done():
		err = s.ctx.Err()
	case <-p.done:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pending.abandoned = true
	return sendAnswer{failure: newError(err, nil, pending.written)}
}

// Close takes no more messages, waits for those under way, and ends the stream. When the context ends before that,
// what is unanswered fails.
func (p *Producer) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	settled := make(chan struct{})
	go func() {
		p.sending.Wait()
		close(settled)
	}()
	var err error
	select {
	case <-settled:
	case <-ctx.Done():
		err = newError(ctx.Err(), nil, true)
	}
	p.cancel()
	<-p.done
	return err
}

// run opens a stream whenever there is something to send and none is open.
func (p *Producer) run() {
	defer close(p.done)
	for failures := 0; ; {
		select {
		case <-p.wake:
		case <-p.ctx.Done():
			return
		}
		stream := &produceStream{producer: p, unanswered: map[uint64][]*pendingSend{}}
		closing, failure := stream.run()
		span := closing.GetRetryDelay().AsDuration()
		if failure != nil {
			if stream.limits != nil {
				failures = 0
			}
			span = backOff(failures, failure.RetryDelay)
			failures++
		}
		p.queue.client.logger.Info("pgmq: a producer's stream has ended", "queue", p.queue.name, "reason", closing.GetReason(), "failure", failure)
		if failure != nil && failure.lasting() {
			for _, pending := range p.take() {
				own := *failure
				pending.answer <- sendAnswer{failure: &own}
			}
		}
		sleep(p.ctx, span)
		p.mu.Lock()
		waiting := len(p.queued) > 0
		p.mu.Unlock()
		if waiting {
			p.signal()
		}
	}
}

func (p *Producer) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take takes what is queued and still waited for.
func (p *Producer) take() []*pendingSend {
	p.mu.Lock()
	defer p.mu.Unlock()
	queued := p.queued[:0]
	for _, pending := range p.queued {
		if !pending.abandoned {
			pending.written = true
			queued = append(queued, pending)
		}
	}
	p.queued = nil
	return queued
}

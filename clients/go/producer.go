package pgmq

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

const (
	// What the contract allows.
	defaultWindow = 10_000
	// The server takes requests of up to 8 MiB, and a larger one is the end of its stream. This leaves room for what is
	// around a message.
	largestOfStream = 8<<20 - 4096
)

// ProducerOptions are the settings of a producer.
type ProducerOptions struct {
	// MaxInFlight is the most messages that are sent and not answered: up to 10,000, which 0 means. Beyond that, Send
	// waits. With less than 0, each Send is refused.
	MaxInFlight int
	// Idempotent gives every message a deduplication id that has none.
	Idempotent bool
}

// Producer lets many goroutines share one stream of sends: the fast way to send. The stream is opened with the first
// message, and again when it has ended.
//
// [Queue.Send] shares one by itself. A producer of one's own is for other settings, for [Producer.SendAsync], and for
// sends that wait longer than a call is repeated while the server is away.
type Producer struct {
	queue   *Queue
	options ProducerOptions
	// Whether the client keeps it for Queue.Send: where no stream can be opened, it makes unary calls.
	shared bool
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	// Holds one token for each message that is not answered.
	window chan struct{}
	wake   chan struct{}

	mu     sync.Mutex
	closed bool
	// Counts the sends under way, for Close.
	sending sync.WaitGroup
	queued  []*Sending
	// Why there is no stream, and whether the next one is not tried yet.
	trouble *Error
	pausing bool
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
	// It has not begun, or takes no more. What waits for it has not left.
	refusing
)

// Producer makes a producer for the queue. Close it at the end.
func (q *Queue) Producer(options ProducerOptions) *Producer {
	p := newProducer(q, options)
	if !enter(q.client.closing, q.client.closing.producers, p) {
		p.closed = true
		p.cancel()
	}
	go p.run()
	return p
}

func newProducer(q *Queue, options ProducerOptions) *Producer {
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
	// Gives the answer to each attempt, of which there is one at a time.
	answer chan sendAnswer
	trying bool
	// Whether the attempt was taken for a stream, and whether nobody waits for it any more. The producer guards them.
	written, abandoned bool
	// Whether nobody knows what became of an attempt.
	unknown bool
	done    chan struct{}
	sent    Sent
	err     error
}

// Wait waits for the answer.
func (s *Sending) Wait() (Sent, error) {
	<-s.done
	return s.sent, s.err
}

func (p *Producer) begin(ctx context.Context, message any, options []SendOption) (*Sending, error) {
	m := outgoing(message, options)
	m.Idempotent = m.Idempotent || p.options.Idempotent
	encoded, err := p.queue.client.outgoingMessage(m)
	if err != nil {
		return nil, err
	}
	return p.put(ctx, encoded)
}

// put waits for room in the window and puts the message on the stream.
func (p *Producer) put(ctx context.Context, message *pgmqv1.OutgoingMessage) (*Sending, error) {
	if p.options.MaxInFlight < 0 {
		return nil, refused(codes.InvalidArgument, "max_in_flight", "at least one message is in flight", nil)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		if p.queue.client.closing.isBegun() {
			return nil, isClosed()
		}
		return nil, refused(codes.FailedPrecondition, "", "the producer is closed", nil)
	}
	p.sending.Add(1)
	p.mu.Unlock()
	s := &Sending{producer: p, message: message, answer: make(chan sendAnswer, 1), done: make(chan struct{})}
	s.ctx, s.cancel = p.queue.client.withDeadline(ctx, 0)
	if err := p.room(s.ctx); err != nil {
		s.cancel()
		p.sending.Done()
		return nil, newError(err, nil, false)
	}
	if proto.Size(message) <= largestOfStream {
		s.try()
	}
	return s, nil
}

// room waits for a place in the window.
func (p *Producer) room(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case p.window <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish waits for the answer, and sends again what may be.
func (s *Sending) finish() {
	keyed, alone := s.message.DeduplicationId != "", !s.trying
	var failure *Error
	if !alone {
		failure = repeat(s.ctx, keyed, func() *Error {
			answer := s.attempt(keyed)
			s.sent, alone = answer.sent, answer.end == refusing
			return answer.failure
		})
	}
	if alone && (failure == nil || s.producer.shared) {
		var err error
		s.sent, err = s.producer.queue.sendAlone(s.ctx, s.message)
		failure = newError(err, nil, false)
	}
	if failure != nil {
		failure.OutcomeUnknown = failure.OutcomeUnknown || s.unknown
		s.err = failure
	}
	s.cancel()
	<-s.producer.window
	close(s.done)
	s.producer.sending.Done()
}

// attempt waits for an answer. A message that was not sent, or may be sent twice, waits for the next stream.
func (s *Sending) attempt(keyed bool) sendAnswer {
	for {
		if !s.trying {
			s.try()
		}
		answer := s.wait()
		s.trying = false
		s.unknown = s.unknown || answer.end == broken
		if answer.end != planned && (answer.end != broken || !keyed) {
			return answer
		}
	}
}

// try puts the message on the stream. It need not wait for a pause to end where it would be refused in it.
func (s *Sending) try() {
	s.trying = true
	p := s.producer
	p.mu.Lock()
	defer p.mu.Unlock()
	s.written = false
	if p.shared && p.pausing && (p.trouble.lasting() || s.message.DeduplicationId == "") {
		s.answer <- p.trouble.refusal()
		return
	}
	p.queued = append(p.queued, s)
	p.signal()
}

func (s *Sending) wait() sendAnswer {
	p, err := s.producer, context.Canceled
	select {
	case answer := <-s.answer:
		return answer
	case <-s.ctx.Done():
		err = s.ctx.Err()
	case <-p.done:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.abandoned = true
	failure := newError(err, nil, s.written)
	if !s.written && p.trouble != nil {
		failure.Message += ", and there was no stream: " + p.trouble.Message
	}
	return sendAnswer{failure: failure}
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
	defer forget(p.queue.client.closing, p.queue.client.closing.producers, p)
	defer close(p.done)
	for failures := 0; ; {
		select {
		case <-p.wake:
		case <-p.ctx.Done():
			return
		}
		stream := &produceStream{producer: p, unanswered: map[uint64][]*Sending{}}
		closing, failure := stream.run()
		span := closing.GetRetryDelay().AsDuration()
		if failure != nil {
			if stream.limits != nil {
				failures = 0
			}
			span = backOff(failures, failure.RetryDelay)
			failures++
			p.refuse(failure, stream.limits != nil)
		}
		p.queue.client.logger.Info("pgmq: a producer's stream has ended", "queue", p.queue.name, "reason", closing.GetReason(), "failure", failure)
		sleep(p.ctx, span)
		p.mu.Lock()
		p.pausing = false
		waiting := len(p.queued) > 0
		p.mu.Unlock()
		if waiting {
			p.signal()
		}
	}
}

// opened notes that there is a stream.
func (p *Producer) opened() {
	p.mu.Lock()
	p.trouble = nil
	p.mu.Unlock()
}

// refuse tells those who wait for a stream that none is to be had: all of them where none will come. Where one may come
// they wait, but for messages without a deduplication id of a shared producer, which go by unary calls.
func (p *Producer) refuse(failure *Error, begun bool) {
	p.mu.Lock()
	p.trouble, p.pausing = failure, true
	p.mu.Unlock()
	lasting := failure.lasting()
	if !lasting && (begun || !p.shared) {
		return
	}
	for _, s := range p.take(lasting) {
		s.answer <- failure.refusal()
	}
}

// refusal is the answer to a message that waits for a stream which has failed to begin.
func (e *Error) refusal() sendAnswer {
	own := *e
	own.OutcomeUnknown, own.noRepeat = false, true
	return sendAnswer{failure: &own, end: refusing}
}

func (p *Producer) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take takes what is queued and still waited for; without keyed, only messages that have no deduplication id.
func (p *Producer) take(keyed bool) []*Sending {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken, left := p.queued[:0], []*Sending(nil)
	for _, s := range p.queued {
		switch {
		case s.abandoned:
		case !keyed && s.message.DeduplicationId != "":
			left = append(left, s)
		default:
			s.written = true
			taken = append(taken, s)
		}
	}
	p.queued = left
	return taken
}

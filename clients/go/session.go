package pgmq

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// The most receipts of one command.
const maxReceipts = 1000

// session is one Consume stream of a consumer, from its opening to its end.
type session struct {
	consumer *Consumer
	ctx      context.Context
	close    context.CancelFunc
	stream   grpc.BidiStreamingClient[pgmqv1.ConsumeRequest, pgmqv1.ConsumeResponse]
	// Closed when the next stream may be opened: at `closing`, or at the end.
	leaving chan struct{}
	// Closed when no message follows: at `stopped`.
	stopped chan struct{}
	// Closed at the end.
	over chan struct{}
	// Set by `started`, before anybody else knows the session.
	started           *pgmqv1.StreamStarted
	visibilityTimeout time.Duration

	mu      sync.Mutex
	wake    chan struct{}
	queued  []*command
	pending map[uint64][]*command
	wanted  struct{ stop, leave bool }
	closing *pgmqv1.Closing
	ended   bool
	failure *Error
}

// command is the settling of one message. The writer puts those that are alike into one command of the contract.
type command struct {
	receipt    string
	settlement settlement
	// Whether it was refused together with others, so that it travels by itself now.
	alone  bool
	answer chan answer
}

type answer struct {
	result  *Result
	failure *Error
}

func openSession(c *Consumer) *session {
	s := &session{
		consumer: c,
		leaving:  make(chan struct{}),
		stopped:  make(chan struct{}),
		over:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		pending:  map[uint64][]*command{},
	}
	s.ctx, s.close = context.WithCancel(c.streams)
	go s.run()
	return s
}

func (s *session) run() {
	err := s.receive()
	s.close()
	s.consumer.lost(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.failure = err
	if s.closing == nil || s.closing.GetReason() == pgmqv1.ClosingReason_CLOSING_REASON_QUEUE_DROPPED {
		close(s.leaving)
	}
	close(s.over)
	for _, commands := range s.pending {
		s.queued = append(s.queued, commands...)
	}
	for _, command := range s.queued {
		command.answer <- answer{failure: &Error{Code: codes.Unavailable, Message: "the stream has ended", OutcomeUnknown: true}}
	}
}

// receive takes what comes until the end. An end that was planned has no error.
func (s *session) receive() *Error {
	stream, err := s.consumer.queue.client.raw.Queue.Consume(s.ctx)
	if err != nil {
		return newError(err, nil, false)
	}
	s.stream = stream
	if err := stream.Send(&pgmqv1.ConsumeRequest{Command: &pgmqv1.ConsumeRequest_Start{Start: s.consumer.start}}); err != nil && err != io.EOF {
		return newError(err, nil, true)
	}
	// Silence for twice the interval means that the stream is dead.
	silence := time.AfterFunc(2*heartbeatInterval, s.close)
	defer silence.Stop()
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return newError(err, stream.Trailer(), true)
		}
		silence.Reset(2 * heartbeatInterval)
		if started := response.GetStarted(); started != nil {
			s.started, s.visibilityTimeout = started, started.GetVisibilityTimeout().AsDuration()
			s.consumer.opened(s)
			go s.write()
		}
		if messages := response.GetMessages(); len(messages) > 0 {
			s.consumer.deliver(s, messages)
		}
		if response.GetStopped() != nil {
			close(s.stopped)
		}
		for _, result := range response.GetCommandResults() {
			s.finish(result)
		}
		if closing := response.GetClosing(); closing != nil {
			s.mu.Lock()
			s.closing = closing
			s.mu.Unlock()
			// The stream of a queue that was dropped ends with the error that says so.
			if closing.GetReason() != pgmqv1.ClosingReason_CLOSING_REASON_QUEUE_DROPPED {
				close(s.leaving)
			}
		}
	}
}

// why tells what the stream was left for: an end that the server has announced, or a failure.
func (s *session) why() (*pgmqv1.Closing, *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return nil, s.failure
	}
	return s.closing, nil
}

// do settles a message over the stream. Where that is over before the answer, the code is Unavailable.
func (s *session) do(ctx context.Context, receipt string, what settlement) (*Result, *Error) {
	answer := s.put(what, receipt)[0].wait(ctx)
	return answer.result, answer.failure
}

// put has messages settled over the stream, with whatever else is on its way.
func (s *session) put(what settlement, receipts ...string) []*command {
	commands := convert(receipts, func(receipt string) *command {
		return &command{receipt: receipt, settlement: what, answer: make(chan answer, 1)}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.wanted.leave {
		for _, command := range commands {
			command.answer <- answer{failure: &Error{Code: codes.Unavailable, Message: "the stream has ended"}}
		}
		return commands
	}
	s.queued = append(s.queued, commands...)
	s.signal()
	return commands
}

func (c *command) wait(ctx context.Context) answer {
	select {
	case answer := <-c.answer:
		return answer
	case <-ctx.Done():
		return answer{failure: newError(ctx.Err(), nil, true)}
	}
}

// stop asks the server for no more messages, and returns when none comes.
func (s *session) stop(ctx context.Context) {
	s.mu.Lock()
	s.wanted.stop = true
	s.mu.Unlock()
	s.signal()
	select {
	case <-s.stopped:
	case <-s.leaving:
	case <-s.over:
	case <-ctx.Done():
	}
}

// leave ends the stream once everything is answered.
func (s *session) leave(ctx context.Context) {
	s.mu.Lock()
	s.wanted.leave = true
	s.mu.Unlock()
	s.signal()
	select {
	case <-s.over:
	case <-ctx.Done():
	}
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// write sends commands, and a sign of life now and then. An error of a send shows where the stream is received.
func (s *session) write() {
	heartbeat := time.NewTicker(heartbeatInterval)
	defer heartbeat.Stop()
	stopped := false
	for number := uint64(0); ; {
		select {
		case <-s.wake:
		case <-heartbeat.C:
			_ = s.stream.Send(&pgmqv1.ConsumeRequest{Command: &pgmqv1.ConsumeRequest_Heartbeat{Heartbeat: &pgmqv1.ClientHeartbeat{}}})
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		queued, wanted := s.queued, s.wanted
		s.queued = nil
		groups := alike(queued)
		for i, group := range groups {
			s.pending[number+uint64(i)] = group
		}
		s.mu.Unlock()
		if wanted.stop && !stopped {
			stopped = true
			_ = s.stream.Send(&pgmqv1.ConsumeRequest{Command: &pgmqv1.ConsumeRequest_Stop{Stop: &pgmqv1.Stop{}}})
		}
		for _, group := range groups {
			_ = s.stream.Send(encodeCommand(number, group))
			number++
		}
		if wanted.leave {
			_ = s.stream.CloseSend()
			return
		}
	}
}

// alike groups commands that can travel as one.
func alike(commands []*command) [][]*command {
	var groups [][]*command
	open := map[settlement]int{}
	for _, c := range commands {
		i, ok := open[c.settlement]
		if !ok || c.alone || len(groups[i]) == maxReceipts {
			i = len(groups)
			groups = append(groups, nil)
		}
		if !c.alone {
			open[c.settlement] = i
		}
		groups[i] = append(groups[i], c)
	}
	return groups
}

func encodeCommand(number uint64, group []*command) *pgmqv1.ConsumeRequest {
	request := &pgmqv1.ConsumeRequest{RequestId: number}
	receipts := convert(group, func(c *command) string { return c.receipt })
	what := group[0].settlement
	if what.action == actionExtend {
		request.Command = &pgmqv1.ConsumeRequest_Extend{Extend: &pgmqv1.Extend{Receipts: receipts, VisibilityTimeout: span(what.span)}}
		return request
	}
	settle := &pgmqv1.Settle{Receipts: receipts, Action: what.action, Reason: what.reason, Delay: span(what.span)}
	request.Command = &pgmqv1.ConsumeRequest_Settle{Settle: settle}
	return request
}

// finish answers those who wait for a command. If one message can be the reason why several were refused, each of
// them is settled by itself.
func (s *session) finish(result *pgmqv1.CommandResult) {
	s.mu.Lock()
	commands := s.pending[result.GetRequestId()]
	delete(s.pending, result.GetRequestId())
	s.mu.Unlock()
	if result.GetError() == nil {
		for i, result := range result.GetResults() {
			if command := commands[i]; command.alone && command.settlement.action != actionExtend && result.Outcome == NotFound {
				// The message is gone, most likely by the first attempt.
				result.Outcome = Done
			}
			commands[i].answer <- answer{result: result}
		}
		return
	}
	failure := commandError(result.GetError())
	if len(commands) > 1 && failure.ofOneAmongSeveral() {
		s.mu.Lock()
		for _, command := range commands {
			command.alone = true
		}
		s.queued = append(s.queued, commands...)
		s.mu.Unlock()
		s.signal()
		return
	}
	for _, command := range commands {
		own := *failure
		command.answer <- answer{failure: &own}
	}
}

package pgmq

import (
	"context"
	"io"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// openingTime is how long a stream may take to begin.
const openingTime = 10 * time.Second

// produceStream is one Produce stream of a producer, from its opening to its end.
type produceStream struct {
	producer *Producer
	stream   grpc.BidiStreamingClient[pgmqv1.ProduceRequest, pgmqv1.ProduceResponse]
	// What the server allows, from its first reply on.
	limits *pgmqv1.ProduceStarted

	mu         sync.Mutex
	closing    *pgmqv1.Closing
	unanswered map[uint64][]*Sending
}

// run opens the stream, and returns at its end, which was announced or is a failure.
func (s *produceStream) run() (*pgmqv1.Closing, *Error) {
	ctx, cancel := context.WithCancel(s.producer.ctx)
	defer cancel()
	stream, err := s.producer.queue.client.raw.Queue.Produce(ctx)
	if err != nil {
		return nil, newError(err, nil, false)
	}
	s.stream = stream
	var writer sync.WaitGroup
	// Silence for twice the interval means that the stream is dead. Its beginning takes no time.
	silence := time.AfterFunc(openingTime, cancel)
	defer silence.Stop()
	for {
		response, err := stream.Recv()
		if err != nil {
			cancel()
			writer.Wait()
			return s.over(err)
		}
		interval := heartbeatInterval
		if started := response.GetStarted(); started != nil {
			s.limits = started
			s.producer.opened()
			writer.Add(1)
			go func() {
				defer writer.Done()
				s.write(ctx)
			}()
		}
		if s.limits != nil {
			interval = s.limits.GetHeartbeatInterval().AsDuration()
		}
		silence.Reset(2 * interval)
		if closing := response.GetClosing(); closing != nil {
			s.mu.Lock()
			s.closing = closing
			s.mu.Unlock()
		}
		if len(response.GetMsgIds()) > 0 {
			s.answer(response)
		}
	}
}

// write sends what is queued, in frames, until the stream is about to end.
func (s *produceStream) write(ctx context.Context) {
	for sequence := uint64(1); ; {
		// Lets those who are about to send come along.
		runtime.Gosched()
		s.mu.Lock()
		closing := s.closing != nil
		s.mu.Unlock()
		if closing || ctx.Err() != nil {
			return
		}
		for _, frame := range s.frames(s.producer.take(true)) {
			s.mu.Lock()
			s.unanswered[sequence] = frame
			s.mu.Unlock()
			// An error shows where the stream is received.
			_ = s.stream.Send(&pgmqv1.ProduceRequest{
				Queue:         s.producer.queue.name,
				FirstSequence: sequence,
				Messages:      convert(frame, func(s *Sending) *pgmqv1.OutgoingMessage { return s.message }),
			})
			sequence += uint64(len(frame))
		}
		select {
		case <-s.producer.wake:
		case <-ctx.Done():
		}
	}
}

// frames cuts messages into frames that the server takes.
func (s *produceStream) frames(queued []*Sending) [][]*Sending {
	var frames [][]*Sending
	first, bytes := 0, 0
	for i, sending := range queued {
		size := len(sending.message.Message) + len(sending.message.Headers)
		if i > first && (i-first >= int(s.limits.GetMaxFrameMessages()) || bytes+size > int(s.limits.GetMaxFrameBytes())) {
			frames = append(frames, queued[first:i])
			first, bytes = i, 0
		}
		bytes += size
	}
	if first < len(queued) {
		frames = append(frames, queued[first:])
	}
	return frames
}

// answer gives each message of a frame its own answer.
func (s *produceStream) answer(response *pgmqv1.ProduceResponse) {
	s.mu.Lock()
	frame := s.unanswered[response.GetFirstSequence()]
	delete(s.unanswered, response.GetFirstSequence())
	s.mu.Unlock()
	answers := make([]sendAnswer, len(frame))
	for i := range answers {
		answers[i].sent.MsgID = response.GetMsgIds()[i]
	}
	for _, i := range response.GetDeduplicated() {
		answers[i].sent.Deduplicated = true
	}
	for _, failure := range response.GetFailures() {
		answers[failure.GetIndex()].failure = commandError(failure.GetError())
	}
	for i, sending := range frame {
		sending.answer <- answers[i]
	}
}

// over tells those who still wait how the stream has ended.
func (s *produceStream) over(err error) (*pgmqv1.Closing, *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := broken
	var failure *Error
	switch {
	case err == io.EOF && s.closing != nil:
		end = planned
	case err == io.EOF:
		failure = &Error{Code: codes.Unavailable, Message: "the stream has ended"}
	default:
		failure = newError(err, s.stream.Trailer(), true)
	}
	for _, frame := range s.unanswered {
		for _, sending := range frame {
			unanswered := &Error{Code: codes.Unavailable, Message: "the stream ended before the answer came", OutcomeUnknown: true}
			sending.answer <- sendAnswer{end: end, failure: unanswered}
		}
	}
	return s.closing, failure
}

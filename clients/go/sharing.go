package pgmq

import (
	"context"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/metadata"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

const (
	// How long a producer that sends share is kept without one.
	sharedIdle = 10 * time.Second
	// The largest message that shares a stream: what is larger would only hold up the others.
	largestShared = 1 << 20
)

// sharing knows the sends of [Queue.Send] that are under way, and the producers that they share.
type sharing struct {
	mu        sync.Mutex
	ended     *sync.Cond
	closed    bool
	underWay  int
	producers map[string]*sharedProducer
}

// sharedProducer is a producer with those who use it at the moment.
type sharedProducer struct {
	*Producer
	senders int
	idle    *time.Timer
}

func newSharing() *sharing {
	s := &sharing{producers: map[string]*sharedProducer{}}
	s.ended = sync.NewCond(&s.mu)
	return s
}

// begin counts a send, and gives the producer that it goes through: none for a lone one, and for what a stream cannot
// carry.
func (s *sharing) begin(ctx context.Context, q *Queue, m *pgmqv1.OutgoingMessage) (*sharedProducer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, isClosed()
	}
	s.underWay++
	if s.underWay == 1 || !fitsStream(ctx, q, m) {
		return nil, nil
	}
	p := s.producers[q.name]
	if p == nil {
		p = &sharedProducer{Producer: newProducer(q, ProducerOptions{})}
		p.shared = true
		p.idle = time.AfterFunc(sharedIdle, func() { s.retire(p) })
		s.producers[q.name] = p
		go p.run()
	}
	p.senders++
	p.idle.Stop()
	return p, nil
}

// fitsStream tells whether a message and its context can travel with others.
func fitsStream(ctx context.Context, q *Queue, m *pgmqv1.OutgoingMessage) bool {
	own, _ := metadata.FromOutgoingContext(ctx)
	return len(own) == 0 && len(m.Message)+len(m.Headers) <= largestShared && utf8.ValidString(q.name)
}

// end ends a send that [sharing.begin] has counted.
func (s *sharing) end(p *sharedProducer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underWay--
	if s.underWay == 0 && s.closed {
		s.ended.Broadcast()
	}
	if p == nil {
		return
	}
	if p.senders--; p.senders == 0 {
		p.idle.Reset(sharedIdle)
	}
}

// retire ends a producer that nobody has used for a while.
func (s *sharing) retire(p *sharedProducer) {
	s.mu.Lock()
	unused := p.senders == 0 && s.producers[p.queue.name] == p
	if unused {
		delete(s.producers, p.queue.name)
	}
	s.mu.Unlock()
	if unused {
		_ = p.Close(context.Background())
	}
}

// close takes no more sends, waits for those under way until the context ends, and ends the producers.
func (s *sharing) close(ctx context.Context) {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.ended.Broadcast()
		s.mu.Unlock()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for s.underWay > 0 && ctx.Err() == nil {
		s.ended.Wait()
	}
	for name, p := range s.producers {
		p.idle.Stop()
		_ = p.Close(ctx)
		delete(s.producers, name)
	}
}

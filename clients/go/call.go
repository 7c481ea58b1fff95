package pgmq

import (
	"context"
	"math"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

const (
	// How often a failed call is made again.
	maxRepeats = 3
	// The pauses before, each growing times as long as the one before it.
	firstPause = 250 * time.Millisecond
	growing    = 3
)

// terms are what the contract says about one call.
type terms struct {
	// Whether it may be repeated when nobody knows what became of it.
	repeatable bool
	// How much longer than the client's timeout it may take.
	longer time.Duration
	// Whether it settles several messages, so that some of them may be settled when it fails.
	several bool
}

var (
	once       = terms{}
	repeatable = terms{repeatable: true}
	// For calls that read or write whole tables: the server itself gives them an hour.
	long = terms{longer: time.Hour}
)

// call makes a unary call: with a deadline, and again after a pause where that is safe.
func call[Q, R any](ctx context.Context, c *Client, terms terms, method func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	ctx, cancel := c.withDeadline(ctx, terms.longer)
	defer cancel()
	var response R
	failure := repeat(ctx, terms.repeatable, func() *Error {
		if c.closing.closed.Load() {
			return isClosed()
		}
		var (
			err     error
			trailer metadata.MD
			remote  peer.Peer
		)
		response, err = method(ctx, request, grpc.Trailer(&trailer), grpc.Peer(&remote))
		// gRPC names the peer of a call that was handed to a connection.
		failure := newError(err, trailer, remote.Addr != nil)
		if terms.several && failure.ofOneAmongSeveral() {
			failure.OutcomeUnknown = true
		}
		return failure
	})
	if failure != nil {
		return response, failure
	}
	return response, nil
}

// withDeadline gives a context without a deadline the client's.
func (c *Client) withDeadline(ctx context.Context, longer time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	span := c.timeout + longer
	if span < 0 {
		span = math.MaxInt64
	}
	return context.WithTimeout(ctx, span)
}

// repeat makes attempts until one succeeds, no other one is safe, or there is no time for one. If any of them has an
// unknown outcome, the whole has.
func repeat(ctx context.Context, safe bool, attempt func() *Error) *Error {
	unknown := false
	for tries := 0; ; tries++ {
		failure := attempt()
		if failure == nil {
			return nil
		}
		unknown = unknown || failure.OutcomeUnknown
		span := backOff(tries, failure.RetryDelay)
		deadline, ok := ctx.Deadline()
		if tries == maxRepeats || !failure.repeatable(safe) || ok && time.Until(deadline) < span || !sleep(ctx, span) {
			failure.OutcomeUnknown = unknown
			return failure
		}
	}
}

// backOff is how long to wait after so many failures: longer each time, and at least as long as the server asks.
func backOff(failures int, asked time.Duration) time.Duration {
	span := firstPause
	for range min(failures, maxRepeats) {
		span *= growing
	}
	return max(span/2+rand.N(span/2), asked)
}

// sleep waits. It is false, at once, where the context ends before that.
func sleep(ctx context.Context, span time.Duration) bool {
	timer := time.NewTimer(span)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

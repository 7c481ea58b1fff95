package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// crowd is a client with one send that does not end before it is told to, so that all others share a stream.
type crowd struct {
	// Where its client connects to; empty means the server of the tests.
	target string
	wire   wire
	queue  *pgmq.Queue
	free   func()
	close  func() error
}

// gather makes a crowd on a new queue. What its wire is to do is set before.
func (c *crowd) gather(t *testing.T) {
	t.Helper()
	held, entered := make(chan struct{}), make(chan struct{})
	c.wire.beforeSend = func() {
		if c.wire.sends.Load() == 1 {
			close(entered)
			<-held
		}
	}
	client, err := pgmq.Connect(c.target, c.wire.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	c.close = client.Close
	// Another client makes and drops the queue, because a test may close this one.
	c.queue = client.Queue(newQueue(t, connect(t), pgmq.CreateOptions{}).Name())
	lone := make(chan error, 1)
	// The test's own context has ended when what is held is freed at last.
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	go func() {
		_, err := c.queue.Send(ctx, "lone")
		lone <- err
	}()
	<-entered
	c.free = sync.OnceFunc(func() {
		defer cancel()
		close(held)
		if err := <-lone; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(c.free)
}

// bodies gives what is stored, by its id.
func bodies(t *testing.T, queue *pgmq.Queue) map[int64]string {
	t.Helper()
	all := map[int64]string{}
	for message, err := range queue.ListMessages(t.Context(), pgmq.ListMessagesOptions{PageSize: 1000}) {
		if err != nil {
			t.Fatal(err)
		}
		all[message.MsgID] = message.MessageText
	}
	return all
}

func failureOf(t *testing.T, err error) *pgmq.Error {
	t.Helper()
	failure := &pgmq.Error{}
	if !errors.As(err, &failure) {
		t.Errorf("%T: %v", err, err)
	}
	return failure
}

// group is a wait group that starts those it waits for.
type group struct{ sync.WaitGroup }

func (g *group) Go(do func()) {
	g.Add(1)
	go func() {
		defer g.Done()
		do()
	}()
}

func TestALoneSendIsAUnaryCall(t *testing.T) {
	var w wire
	queue := newQueue(t, connect(t, w.options()), pgmq.CreateOptions{})
	for range 3 {
		if _, err := queue.Send(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	if w.sends.Load() != 3 || w.streams.Load() != 0 {
		t.Errorf("%d unary calls, %d streams", w.sends.Load(), w.streams.Load())
	}
}

func TestConcurrentSendsShareAStreamAndEachHasItsOwnAnswer(t *testing.T) {
	var c crowd
	c.gather(t)
	_, lone := connect(t).Queue(c.queue.Name()).Send(t.Context(), pgmq.Text("{oops}"))
	const all = 100
	ids := make([]int64, all)
	var senders group
	for i := range all {
		senders.Go(func() {
			if i%10 == 9 {
				_, err := c.queue.Send(within(t), pgmq.Text("{oops}"))
				failure, same := failureOf(t, err), failureOf(t, lone)
				if failure.Code != same.Code || failure.Reason != same.Reason || failure.Field != same.Field ||
					fmt.Sprint(failure.Metadata) != fmt.Sprint(same.Metadata) || failure.OutcomeUnknown || failure.RequestID == "" {
					t.Errorf("%+v, where a lone one has %+v", failure, same)
				}
				return
			}
			sent, err := c.queue.Send(within(t), i)
			if err != nil {
				t.Error(err)
			}
			ids[i] = sent.MsgID
		})
	}
	senders.Wait()
	stored := bodies(t, c.queue)
	for i, id := range ids {
		if i%10 != 9 && stored[id] != fmt.Sprint(i) {
			t.Errorf("message %d has the id %d, which is that of %s", i, id, stored[id])
		}
	}
	if len(stored) != all*9/10 || c.wire.sends.Load() != 1 || c.wire.streams.Load() != 1 {
		t.Errorf("%d are stored, by %d unary calls and %d streams", len(stored), c.wire.sends.Load(), c.wire.streams.Load())
	}
}

func TestASharedSendTakesWhatALoneOneTakes(t *testing.T) {
	var c crowd
	c.gather(t)
	send := func(body any, options ...pgmq.SendOption) (pgmq.Sent, error) {
		return c.queue.Send(within(t), body, options...)
	}
	first, err := send(1, pgmq.WithDeduplicationID("one"), pgmq.WithHeaders(map[string]any{"trace": "t1"}), pgmq.WithGroup("g"))
	if err != nil || first.Deduplicated {
		t.Fatal(first, err)
	}
	if again, err := send(1, pgmq.WithDeduplicationID("one")); err != nil || !again.Deduplicated || again.MsgID != first.MsgID {
		t.Error(again, err)
	}
	if _, err := send(2, pgmq.WithDeduplicationID("one")); !errors.Is(err, pgmq.ReasonDeduplicationIDReused) {
		t.Error(err)
	}
	if _, err := send(2, pgmq.WithDelay(1000*patience)); err != nil {
		t.Error(err)
	}
	messages, err := c.queue.Read(t.Context(), pgmq.ReadOptions{MaxMessages: 10})
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	if headers, err := messages[0].Headers(); err != nil || headers["trace"] != "t1" || headers["x-pgmq-group"] != "g" {
		t.Error(headers, err)
	}
}

func TestWhatIsOnlyForOneCallIsAUnaryCall(t *testing.T) {
	var c crowd
	c.gather(t)
	ctx := metadata.AppendToOutgoingContext(within(t), "pgmq-queue", "go_other")
	if _, err := c.queue.Send(ctx, 1); !errors.Is(err, pgmq.ReasonMetadataMismatch) || c.wire.streams.Load() != 0 {
		t.Errorf("%v, with %d streams", err, c.wire.streams.Load())
	}
}

func TestWhatNoStreamTakesHurtsNobody(t *testing.T) {
	var c crowd
	c.gather(t)
	producer := c.queue.Producer(pgmq.ProducerOptions{Idempotent: true})
	large := strings.Repeat("x", 9<<20)
	for name, send := range map[string]func(context.Context, any, ...pgmq.SendOption) (pgmq.Sent, error){
		"shared": c.queue.Send, "producer": producer.Send,
	} {
		var senders group
		for range 20 {
			senders.Go(func() {
				if _, err := send(within(t), 1); err != nil {
					t.Error(name, err)
				}
			})
		}
		senders.Go(func() {
			if _, err := send(within(t), large); !errors.Is(err, pgmq.ReasonMessageTooLarge) {
				t.Error(name, err)
			}
		})
		for _, option := range []pgmq.SendOption{pgmq.WithHeaders(pgmq.Text("{\"a\": \"\xff\"}")), pgmq.WithGroup("\xff"), pgmq.WithDeduplicationID("\xff")} {
			senders.Go(func() {
				_, err := send(within(t), 1, option)
				if failure := failureOf(t, err); failure.Code != codes.InvalidArgument || failure.Field == "" || failure.OutcomeUnknown {
					t.Errorf("%s: %+v", name, failure)
				}
			})
		}
		senders.Wait()
	}
	if err := producer.Close(within(t)); err != nil {
		t.Error(err)
	}
	if c.wire.streams.Load() != 2 {
		t.Errorf("%d streams were opened", c.wire.streams.Load())
	}
}

func TestWhereNoStreamIsServedSendsAreUnaryCalls(t *testing.T) {
	for _, code := range []codes.Code{codes.PermissionDenied, codes.Unavailable} {
		var c crowd
		c.wire.open = func() error { return status.Error(code, "no streams here") }
		c.gather(t)
		// Neither does a send wait for the pause that follows a failure: all would not end in time.
		ctx := within(t)
		for i := range 50 {
			if _, err := c.queue.Send(ctx, i); err != nil {
				t.Error(code, err)
			}
		}
		if c.wire.streams.Load() == 0 || c.wire.sends.Load() != 51 {
			t.Errorf("%d unary calls, %d streams", c.wire.sends.Load(), c.wire.streams.Load())
		}
		c.free()
	}
}

// forward lets an address lead to the server of the tests.
func forward(t *testing.T, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", os.Getenv("PGMQ_GRPC_TARGET"))
			if err != nil {
				from.Close()
				return
			}
			t.Cleanup(func() { from.Close(); to.Close() })
			go io.Copy(to, from)
			go io.Copy(from, to)
		}
	}()
}

func TestOnlyKeyedSendsWaitForAServerThatIsAway(t *testing.T) {
	t.Parallel()
	c := crowd{target: nobody(t)}
	c.gather(t)
	keyed := make(chan error, 1)
	go func() {
		_, err := c.queue.Send(within(t), "keyed", pgmq.Idempotent())
		keyed <- err
	}()
	// As a unary call it is repeated, for some seconds in all.
	_, err := c.queue.Send(within(t), "unkeyed")
	if failure := failureOf(t, err); failure.Code != codes.Unavailable || failure.OutcomeUnknown {
		t.Errorf("%+v", failure)
	}
	forward(t, c.target)
	if err := <-keyed; err != nil {
		t.Error(err)
	}
	c.free()
	if stored := fmt.Sprint(bodies(t, connect(t).Queue(c.queue.Name()))); stored != `map[1:"keyed" 2:"lone"]` {
		t.Error(stored)
	}
}

// stalled is a crowd whose stream takes messages and gives no answer until it may.
func stalled(t *testing.T) (c *crowd, written *atomic.Int32, answer func()) {
	t.Helper()
	c, written = &crowd{}, &atomic.Int32{}
	held := make(chan struct{})
	c.wire.sending = func(message any) {
		if request, ok := message.(*pgmqv1.ProduceRequest); ok {
			written.Add(int32(len(request.GetMessages())))
		}
	}
	c.wire.receiving = func() {
		if written.Load() > 0 {
			<-held
		}
	}
	c.gather(t)
	return c, written, sync.OnceFunc(func() { close(held) })
}

func TestASharedSendThatEndsEarlyHarmsNoOther(t *testing.T) {
	c, written, answer := stalled(t)
	defer answer()
	ctx, cancel := context.WithCancel(t.Context())
	givenUp, lasting := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.queue.Send(ctx, "given up")
		givenUp <- err
	}()
	go func() {
		_, err := c.queue.Send(within(t), "lasting")
		lasting <- err
	}()
	eventually(t, "both are written", func() bool { return written.Load() == 2 })
	cancel()
	if failure := failureOf(t, <-givenUp); !errors.Is(failure, context.Canceled) || !failure.OutcomeUnknown {
		t.Errorf("%+v", failure)
	}
	answer()
	if err := <-lasting; err != nil {
		t.Error(err)
	}
}

func TestASharedSendWithoutAnAnswerHasADeadline(t *testing.T) {
	c, _, answer := stalled(t)
	defer answer()
	ctx, cancel := context.WithTimeout(t.Context(), patience/60)
	defer cancel()
	_, err := c.queue.Send(ctx, 1)
	if failure := failureOf(t, err); failure.Code != codes.DeadlineExceeded || !failure.OutcomeUnknown {
		t.Errorf("%+v", failure)
	}
}

func TestClosingAClientWaitsForItsSends(t *testing.T) {
	c, written, answer := stalled(t)
	defer answer()
	sent, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.queue.Send(within(t), "under way")
		sent <- err
	}()
	eventually(t, "it is written", func() bool { return written.Load() == 1 })
	go func() { closed <- c.close() }()
	eventually(t, "no more is taken", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience/60)
		defer cancel()
		_, err := c.queue.Send(ctx, "late")
		return failureOf(t, err).Code == codes.Canceled
	})
	select {
	case err := <-closed:
		t.Fatalf("the client was closed before its sends had ended: %v", err)
	case err := <-sent:
		t.Fatalf("the send ended before its answer: %v", err)
	default:
	}
	answer()
	if err := <-sent; err != nil {
		t.Error(err)
	}
	c.free()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	var stored int
	for _, body := range bodies(t, connect(t).Queue(c.queue.Name())) {
		if body == `"under way"` || body == `"lone"` {
			stored++
		}
	}
	if stored != 2 {
		t.Errorf("%d of 2 are stored", stored)
	}
}

func TestAnIdleStreamIsClosedAndOpenedAgain(t *testing.T) {
	t.Parallel()
	var c crowd
	c.gather(t)
	for opened := int32(1); opened <= 2; opened++ {
		if _, err := c.queue.Send(within(t), 1); err != nil || c.wire.streams.Load() != opened {
			t.Fatal(err, c.wire.streams.Load())
		}
		if opened == 2 {
			break
		}
		select {
		case <-c.wire.last.Load().(context.Context).Done():
		case <-within(t).Done():
			t.Fatal("the stream stays open without sends")
		}
	}
}

func TestSharedSendsWhenTheServerIsKilled(t *testing.T) {
	observer := connect(t)
	var c crowd
	c.gather(t)
	const senders = 20
	var going atomic.Bool
	going.Store(true)
	var mu sync.Mutex
	outcomes := map[string]error{}
	var working group
	for i := range 2 * senders {
		working.Go(func() {
			for n := 0; going.Load(); n++ {
				body, options := fmt.Sprintf("unkeyed %d %d", i, n), []pgmq.SendOption{}
				if i < senders {
					body, options = fmt.Sprintf("keyed %d %d", i, n), []pgmq.SendOption{pgmq.Idempotent()}
				}
				_, err := c.queue.Send(within(t), body, options...)
				mu.Lock()
				outcomes[body] = err
				mu.Unlock()
			}
		})
	}
	eventually(t, "sends are under way", func() bool { return length(t, c.queue) > 10*senders })
	restart(t, observer, syscall.SIGKILL)
	going.Store(false)
	working.Wait()
	stored := map[string]int{}
	for _, text := range bodies(t, observer.Queue(c.queue.Name())) {
		stored[strings.Trim(text, `"`)]++
	}
	unknown := 0
	for body, err := range outcomes {
		copies := stored[body]
		switch {
		case err == nil && copies != 1:
			t.Errorf("%q was sent, and is stored %d times", body, copies)
		case err == nil:
		case strings.HasPrefix(body, "keyed"):
			t.Errorf("%q failed: %v", body, err)
		case failureOf(t, err).OutcomeUnknown && copies <= 1:
			unknown++
		case copies > 0:
			t.Errorf("%q is stored, and its outcome is said to be known: %v", body, err)
		}
	}
	if unknown == 0 {
		t.Errorf("of %d sends, the outcome of none is unknown", len(outcomes))
	}
}

package tests

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
)

// another connects a client that the test itself closes.
func another(t *testing.T, options ...pgmq.Option) *pgmq.Client {
	t.Helper()
	client, err := pgmq.Connect("", options...)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestAfterCloseEverythingIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	client := another(t)
	known := newQueue(t, connect(t), pgmq.CreateOptions{})
	queue := client.Queue(known.Name())
	send(t, queue, 1)
	ctx := within(t)
	read, err := queue.Read(ctx, pgmq.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	producer := queue.Producer(pgmq.ProducerOptions{Idempotent: true})
	if _, err := producer.Send(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	words := map[string]func() error{
		"send":              func() error { _, err := queue.Send(ctx, 3); return err },
		"batch":             func() error { _, err := queue.SendBatch(ctx, []pgmq.OutgoingMessage{{Message: 3}}); return err },
		"read":              func() error { _, err := queue.Read(ctx, pgmq.ReadOptions{}); return err },
		"metrics":           func() error { _, err := queue.Metrics(ctx, false); return err },
		"delete":            func() error { _, err := read[0].Delete(ctx); return err },
		"watch":             func() error { _, err := queue.Watch(ctx); return err },
		"the producer":      func() error { _, err := producer.Send(ctx, 3); return err },
		"the producer, too": func() error { _, err := producer.SendAsync(ctx, 3).Wait(); return err },
		"another producer":  func() error { _, err := queue.Producer(pgmq.ProducerOptions{}).Send(ctx, 3); return err },
		"handle": func() error {
			return queue.Handle(ctx, func(context.Context, *pgmq.Message) error { return nil }, pgmq.HandleOptions{})
		},
		"consume": func() error {
			for _, err := range queue.Consume(ctx, pgmq.ConsumeOptions{}).Messages(ctx) {
				return err
			}
			return nil
		},
	}
	for word, do := range words {
		failure := failureOf(t, do())
		if failure == nil || failure.Code != codes.Canceled || failure.Message != "the client is closed" || failure.OutcomeUnknown {
			t.Errorf("%s: %+v", word, failure)
		}
	}
	if left := length(t, known); left != 2 {
		t.Errorf("%d messages are there", left)
	}
}

func TestCloseEndsLoopsAndGivesBackWhatTheyHaveNotTaken(t *testing.T) {
	t.Parallel()
	client := another(t)
	known := newQueue(t, connect(t), pgmq.CreateOptions{})
	queue := client.Queue(known.Name())
	send(t, queue, 1, 2, 3)
	watcher, err := queue.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	watched := make(chan error, 1)
	go func() {
		var last error
		for _, err := range watcher.Events() {
			last = err
		}
		watched <- last
	}()
	taken := 0
	for _, err := range queue.Consume(t.Context(), pgmq.ConsumeOptions{VisibilityTimeout: time.Hour}).Messages(within(t)) {
		if err != nil {
			t.Fatal(err)
		}
		taken++
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-watched; err != nil || taken != 1 {
		t.Error(taken, err)
	}
	if rest, err := known.Read(within(t), pgmq.ReadOptions{MaxMessages: 10}); err != nil || len(rest) != 2 {
		t.Error(len(rest), err)
	}
}

func TestCloseWaitsForHandlersWhichMayStillCall(t *testing.T) {
	t.Parallel()
	client := another(t)
	known := newQueue(t, connect(t), pgmq.CreateOptions{})
	queue := client.Queue(known.Name())
	send(t, queue, "handled")
	begun, wanted := make(chan struct{}), make(chan struct{})
	handled, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		handled <- queue.Handle(within(t), func(ctx context.Context, _ *pgmq.Message) error {
			close(begun)
			<-wanted
			_, err := queue.Send(ctx, "follows")
			return err
		}, pgmq.HandleOptions{})
	}()
	<-begun
	go func() { closed <- client.Close() }()
	eventually(t, "nothing new is begun", func() bool {
		_, err := queue.Producer(pgmq.ProducerOptions{}).Send(within(t), "late")
		return err != nil
	})
	select {
	case <-closed:
		t.Error("the client was closed before its handler had ended")
	case <-handled:
		t.Error("Handle ended before its handler")
	default:
	}
	close(wanted)
	if err := errors.Join(<-handled, <-closed); err != nil {
		t.Error(err)
	}
	for _, body := range bodies(t, known) {
		if body == `"handled"` {
			t.Error("what was handled is still there")
		}
	}
}

func TestCloseWaitsForAHandlerNoLongerThanTheTimeout(t *testing.T) {
	t.Parallel()
	client := another(t, pgmq.WithTimeout(time.Second))
	known := newQueue(t, connect(t), pgmq.CreateOptions{})
	queue := client.Queue(known.Name())
	send(t, queue, 1)
	err := queue.Handle(within(t), func(context.Context, *pgmq.Message) error { return client.Close() }, pgmq.HandleOptions{})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// after fails a message once, and tells for how long it is hidden then, by the database's clock.
func after(t *testing.T, queue *pgmq.Queue, fail func(), options pgmq.HandleOptions) time.Duration {
	t.Helper()
	options.VisibilityTimeout = time.Hour
	ctx, stop := context.WithCancel(within(t))
	var read time.Time
	err := queue.Handle(ctx, func(_ context.Context, m *pgmq.Message) error {
		read = m.VT.Add(-time.Hour)
		stop()
		fail()
		return errors.New("it fails")
	}, options)
	if err != nil {
		t.Fatal(err)
	}
	for m, err := range queue.ListMessages(t.Context(), pgmq.ListMessagesOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		return m.VT.Sub(read)
	}
	t.Fatal("the message is gone")
	return 0
}

func TestAMessageWhoseHandlerFailsComesAgainAfterADelayThatGrows(t *testing.T) {
	t.Parallel()
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1)
	if first := after(t, queue, func() {}, pgmq.HandleOptions{}); first < 750*time.Millisecond || first > 6*time.Second {
		t.Errorf("after %v", first)
	}
	ctx := within(t)
	if _, err := queue.SetVisibilityTimeout(ctx, pgmq.IDs(1), pgmq.Zero); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		read, err := queue.Read(ctx, pgmq.ReadOptions{})
		if err != nil || len(read) != 1 {
			t.Fatal(read, err)
		}
		if _, err := read[0].Release(ctx, pgmq.Zero); err != nil {
			t.Fatal(err)
		}
	}
	if fourth := after(t, queue, func() {}, pgmq.HandleOptions{}); fourth < 6350*time.Millisecond || fourth > time.Minute {
		t.Errorf("after %v", fourth)
	}
}

func TestTheBackoffOfTheQueueAndADelayThatIsGivenGoBefore(t *testing.T) {
	t.Parallel()
	policy := &pgmq.Policy{RetryBackoff: &pgmq.RetryBackoff{Minimum: 100 * time.Second, Maximum: 100 * time.Second}}
	queue := newQueue(t, connect(t), pgmq.CreateOptions{Policy: policy})
	send(t, queue, 1)
	if delay := after(t, queue, func() {}, pgmq.HandleOptions{}); delay < 99*time.Second || delay > 150*time.Second {
		t.Errorf("after %v", delay)
	}
	if _, err := queue.SetVisibilityTimeout(t.Context(), pgmq.IDs(1), pgmq.Zero); err != nil {
		t.Fatal(err)
	}
	if delay := after(t, queue, func() {}, pgmq.HandleOptions{RetryDelay: 500 * time.Second}); delay < 499*time.Second || delay > 550*time.Second {
		t.Errorf("after %v", delay)
	}
}

func TestAHandlerThatEndsItsGoroutineHasFailed(t *testing.T) {
	t.Parallel()
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1, 2)
	ctx, stop := context.WithCancel(within(t))
	var handled atomic.Int32
	err := queue.Handle(ctx, func(context.Context, *pgmq.Message) error {
		if handled.Add(1) == 2 {
			stop()
			return nil
		}
		runtime.Goexit()
		return nil
	}, pgmq.HandleOptions{RetryDelay: time.Hour})
	if err != nil || handled.Load() != 2 {
		t.Error(handled.Load(), err)
	}
	if left := length(t, queue); left != 1 {
		t.Errorf("%d messages are left", left)
	}
}

func TestSettingsThatCannotBeAreRefusedBeforeAnythingBegins(t *testing.T) {
	client := connect(t)
	queue := client.Queue("never_made")
	ctx := within(t)
	handle := func(options pgmq.HandleOptions) func() error {
		return func() error {
			return queue.Handle(ctx, func(context.Context, *pgmq.Message) error { return nil }, options)
		}
	}
	connecting := func(option pgmq.Option) func() error {
		return func() error { _, err := pgmq.Connect("", option); return err }
	}
	refusals := map[string]func() error{
		"concurrency":   handle(pgmq.HandleOptions{Concurrency: -1}),
		"retry_delay":   handle(pgmq.HandleOptions{RetryDelay: -1}),
		"max_in_flight": func() error { _, err := queue.Producer(pgmq.ProducerOptions{MaxInFlight: -1}).Send(ctx, 1); return err },
		"handler":       func() error { return queue.Handle(ctx, nil, pgmq.HandleOptions{}) },
		"visible_at": func() error {
			_, err := queue.Send(ctx, 1, pgmq.WithDelay(pgmq.Zero), pgmq.WithVisibleAt(time.Now()))
			return err
		},
		"timeout":  connecting(pgmq.WithTimeout(-1)),
		"codec":    connecting(pgmq.WithCodec(nil)),
		"metadata": connecting(pgmq.WithName("ü\n")),
	}
	for field, refusal := range refusals {
		failure := failureOf(t, refusal())
		if failure == nil || failure.Code != codes.InvalidArgument || failure.Field != field || failure.OutcomeUnknown {
			t.Errorf("%s: %+v", field, failure)
		}
	}
	if failure := failureOf(t, connecting(pgmq.WithMetadata(map[string]string{"Bad Key": "value"}))()); failure == nil || failure.Field != "metadata" {
		t.Errorf("%+v", failure)
	}
}

func TestATargetIsRefusedWhereItHasNoPort(t *testing.T) {
	for _, target := range []string{"localhost", "localhost:", "localhost:0", "localhost:99999", "dns:///localhost", "http://localhost:1", "::1"} {
		if client, err := pgmq.Connect(target); err == nil {
			client.Close()
			t.Errorf("%s is a target", target)
		}
	}
	for _, target := range []string{"localhost:1", "[::1]:1", "dns:///localhost:65535", "dns:localhost:1", "dns://8.8.8.8/localhost:1", "unix:/x", "passthrough:///x"} {
		client, err := pgmq.Connect(target)
		if err != nil {
			t.Error(err)
			continue
		}
		client.Close()
	}
}

func TestATimeoutIsTheUsualOneOrAsLongAsClocksGo(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	for _, timeout := range []time.Duration{0, time.Duration(1<<63 - 1)} {
		client := connect(t, pgmq.WithTimeout(timeout), nil)
		send(t, client.Queue(queue.Name()), 1)
		read, err := client.Queue(queue.Name()).Read(t.Context(), pgmq.ReadOptions{Wait: time.Second})
		if err != nil || len(read) != 1 {
			t.Error(timeout, read, err)
		}
	}
}

func TestANameThatDoesNotExistAndCredentialsThatCannotBeSentLeaveNothingOpen(t *testing.T) {
	t.Parallel()
	nowhere, err := pgmq.Connect("nowhere.invalid:50051")
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	bad := connect(t, pgmq.WithCredentials(func(context.Context) (map[string]string, error) {
		return map[string]string{"Bad Key": "value"}, nil
	}))
	for _, client := range []*pgmq.Client{nowhere, bad} {
		ctx, cancel := context.WithTimeout(t.Context(), patience/6)
		defer cancel()
		_, err := client.Queue("orders").Send(ctx, 1)
		if failure := failureOf(t, err); failure == nil || failure.OutcomeUnknown {
			t.Errorf("%+v", failure)
		}
	}
}

func TestAMessageThatIsNilIsRefused(t *testing.T) {
	client := connect(t)
	var message *pgmq.Message
	if _, err := message.Delete(t.Context()); err == nil {
		t.Error("it is deleted")
	}
	if _, err := client.Queue("orders").Delete(t.Context(), pgmq.Messages(message)); err == nil {
		t.Error("it is deleted")
	}
}

package tests

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
)

func send(t *testing.T, queue *pgmq.Queue, bodies ...any) {
	t.Helper()
	messages := []pgmq.OutgoingMessage{}
	for _, body := range bodies {
		messages = append(messages, pgmq.OutgoingMessage{Message: body})
	}
	if _, err := queue.SendBatch(t.Context(), messages); err != nil {
		t.Fatal(err)
	}
}

func length(t *testing.T, queue *pgmq.Queue) int64 {
	t.Helper()
	metrics, err := queue.Metrics(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	return metrics.QueueLength
}

// take takes messages of a consumer.
func take(t *testing.T, consumer *pgmq.Consumer, count int) []*pgmq.Message {
	t.Helper()
	var taken []*pgmq.Message
	for message, err := range consumer.Messages(within(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if taken = append(taken, message); len(taken) == count {
			break
		}
	}
	return taken
}

func TestALoopOverAConsumerEndsWhenItIsStopped(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1, 2, 3)
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{})
	handled := 0
	stopped := make(chan error, 1)
	for message, err := range consumer.Messages(within(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if outcome, err := message.Delete(t.Context()); err != nil || outcome != pgmq.Done {
			t.Fatal(outcome, err)
		}
		if handled++; handled == 3 {
			go func() { stopped <- consumer.Stop(within(t)) }()
		}
	}
	if err := <-stopped; err != nil || handled != 3 {
		t.Error(handled, err)
	}
	if left := length(t, queue); left != 0 {
		t.Errorf("%d messages are left", left)
	}
}

func TestALoopEndsWithTheErrorOfItsContext(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	var last error
	for _, err := range consumer.Messages(ctx) {
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Error(last)
	}
}

func TestStopWaitsForWhatIsInHandAndGivesBackTheRest(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, "in hand", "waiting", "waiting")
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{VisibilityTimeout: time.Hour})
	held := take(t, consumer, 1)
	eventually(t, "all messages are delivered", func() bool {
		metrics, err := queue.Metrics(t.Context(), false)
		return err == nil && metrics.InFlightLength == 3
	})
	stopped := make(chan error, 1)
	go func() { stopped <- consumer.Stop(within(t)) }()
	back, err := queue.Read(t.Context(), pgmq.ReadOptions{MaxMessages: 2, Wait: 20 * time.Second})
	if err != nil || len(back) == 0 {
		t.Fatal(back, err)
	}
	select {
	case err := <-stopped:
		t.Fatalf("Stop has not waited for what is in hand: %v", err)
	default:
	}
	if outcome, err := held[0].Archive(t.Context()); err != nil || outcome != pgmq.Done {
		t.Error(outcome, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestACancelledConsumerGivesBackWhatWasNotTaken(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1, 2, 3)
	ctx, cancel := context.WithCancel(t.Context())
	consumer := queue.Consume(ctx, pgmq.ConsumeOptions{VisibilityTimeout: time.Hour})
	held := take(t, consumer, 1)
	cancel()
	eventually(t, "two messages are visible again", func() bool {
		metrics, err := queue.Metrics(t.Context(), false)
		return err == nil && metrics.VisibleLength == 2
	})
	if outcome, err := held[0].Delete(t.Context()); err != nil || outcome != pgmq.Done {
		t.Errorf("what is in hand is settled without a stream: %v, %v", outcome, err)
	}
}

func TestAHandlerSettlesByWhatItReturns(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, "good", "bad", "own")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var deliveries atomic.Int32
	err := queue.Handle(ctx, func(ctx context.Context, message *pgmq.Message) error {
		if deliveries.Add(1) == 4 {
			defer cancel()
		}
		body, err := message.Message()
		switch {
		case err != nil:
			return err
		case body == "bad" && message.ReadCt == 1:
			return errors.New("not now")
		case body == "own":
			_, err := message.Archive(ctx)
			return err
		}
		return nil
	}, pgmq.HandleOptions{Concurrency: 2})
	if err != nil || deliveries.Load() != 4 {
		t.Fatal(deliveries.Load(), err)
	}
	metrics, err := queue.Metrics(t.Context(), true)
	if err != nil || metrics.QueueLength != 0 || *metrics.ArchiveLength != 1 {
		t.Errorf("%+v, %v", metrics, err)
	}
}

func TestHandleFinishesWhatIsInHandWhenItsContextEnds(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1)
	ctx, cancel := context.WithCancel(t.Context())
	err := queue.Handle(ctx, func(ctx context.Context, message *pgmq.Message) error {
		cancel()
		return ctx.Err()
	}, pgmq.HandleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if left := length(t, queue); left != 0 {
		t.Errorf("%d messages are left", left)
	}
}

func TestManyGoroutinesShareAProducer(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	producer := queue.Producer(pgmq.ProducerOptions{MaxInFlight: 8})
	var ids sync.Map
	var senders sync.WaitGroup
	for i := range 200 {
		senders.Add(1)
		go func() {
			defer senders.Done()
			sent, err := producer.Send(within(t), i)
			if err != nil {
				t.Error(err)
			}
			if _, twice := ids.LoadOrStore(sent.MsgID, i); twice {
				t.Errorf("the id %d was given twice", sent.MsgID)
			}
		}()
	}
	senders.Wait()
	if err := producer.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := producer.Send(t.Context(), 1); err == nil {
		t.Error("a closed producer takes messages")
	}
	if stored := length(t, queue); stored != 200 {
		t.Errorf("%d messages are stored", stored)
	}
}

func TestAProducerGivesUpWithItsContext(t *testing.T) {
	client, err := pgmq.Connect(nobody(t))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	producer := client.Queue("orders").Producer(pgmq.ProducerOptions{Idempotent: true})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = producer.Send(ctx, 1)
	var failure *pgmq.Error
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &failure) || failure.OutcomeUnknown {
		t.Errorf("%+v", failure)
	}
	if err := producer.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// restart ends the server by a signal, and waits for the next one.
func restart(t *testing.T, client *pgmq.Client, signal syscall.Signal) {
	t.Helper()
	pid := func() int {
		text, err := os.ReadFile(os.Getenv("PGMQ_GRPC_SERVER_PID_FILE"))
		if err != nil {
			t.Fatal(err)
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return pid
	}
	old := pid()
	if err := syscall.Kill(old, signal); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another server answers", func() bool {
		if next := pid(); next == old || next == 0 {
			return false
		}
		_, err := client.GetServerInfo(t.Context())
		return err == nil
	})
}

func TestWhatIsInHandIsKeptFromOthersAfterARestart(t *testing.T) {
	client := connect(t)
	queue := newQueue(t, client, pgmq.CreateOptions{})
	send(t, queue, "long work")
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{VisibilityTimeout: 10 * time.Second})
	held := take(t, consumer, 1)
	restart(t, client, syscall.SIGKILL)
	eventually(t, "the timeout is extended", func() bool {
		for message, err := range queue.ListMessages(t.Context(), pgmq.ListMessagesOptions{}) {
			return err == nil && message.ReadCt == 1 && message.VT.After(held[0].VT.Add(time.Second))
		}
		return false
	})
	if outcome, err := held[0].Delete(t.Context()); err != nil || outcome != pgmq.Done {
		t.Error(outcome, err)
	}
}

func TestNoMoreIsInHandThanAllowedAfterARestart(t *testing.T) {
	client := connect(t)
	queue := newQueue(t, client, pgmq.CreateOptions{})
	send(t, queue, 1, 2, 3, 4)
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{MaxInFlight: 2, VisibilityTimeout: time.Minute})
	held := take(t, consumer, 2)
	restart(t, client, syscall.SIGTERM)
	eventually(t, "the new stream has delivered", func() bool {
		metrics, err := queue.Metrics(t.Context(), false)
		return err == nil && metrics.InFlightLength == 4
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for message, err := range consumer.Messages(ctx) {
		if err == nil {
			t.Fatalf("message %d is a third one in hand", message.MsgID)
		}
	}
	if _, err := held[0].Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if next := take(t, consumer, 1); next[0].MsgID != 3 {
		t.Errorf("then comes %d", next[0].MsgID)
	}
}

func TestAProducerLosesNothingWhenTheServerIsKilled(t *testing.T) {
	client := connect(t)
	queue := newQueue(t, client, pgmq.CreateOptions{})
	producer := queue.Producer(pgmq.ProducerOptions{Idempotent: true})
	const all = 300
	sent := make(chan error, all)
	for i := range all {
		go func() {
			_, err := producer.Send(within(t), i)
			sent <- err
		}()
	}
	restart(t, client, syscall.SIGKILL)
	for range all {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
	if stored := length(t, queue); stored != all {
		t.Errorf("%d messages are stored", stored)
	}
}

func TestAConsumerTellsThatItsConditionHasNoJSONForm(t *testing.T) {
	consumer := connect(t).Queue("go_nowhere").Consume(t.Context(), pgmq.ConsumeOptions{Conditional: func() {}})
	for _, err := range consumer.Messages(within(t)) {
		if failure := failureOf(t, err); failure.Field != "conditional" || failure.OutcomeUnknown {
			t.Errorf("%+v", failure)
		}
	}
	if failure := failureOf(t, consumer.Stop(within(t))); failure.Field != "conditional" {
		t.Errorf("%+v", failure)
	}
}

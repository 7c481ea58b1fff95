package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

func connect(a *arguments) (any, error) {
	metadata := map[string]string{}
	if given := a.nested("metadata"); given != nil {
		for key, value := range given.with {
			metadata[key] = value.(string)
		}
	}
	options := []pgmq.Option{pgmq.WithMetadata(metadata)}
	if name := a.text("name"); name != "" {
		options = append(options, pgmq.WithName(name))
	}
	client, err := pgmq.Connect("", options...)
	if err != nil {
		return nil, err
	}
	a.runner.closing = append(a.runner.closing, func() { client.Close() })
	return kept(client), nil
}

func (a *arguments) consumeOptions() pgmq.ConsumeOptions {
	options := pgmq.ConsumeOptions{
		MaxInFlight:       a.number("max_in_flight"),
		VisibilityTimeout: a.span("visibility_timeout"),
		Ordering:          a.ordering(),
		Conditional:       a.value("conditional"),
	}
	if extend, ok := a.take("auto_extend"); ok {
		options.NoAutoExtend = extend == false
	}
	return options
}

// consume has the context of the case, which is cancelled at its end.
func consume(a *arguments) (any, error) {
	consumer := a.queue().Consume(a.runner.ctx, a.consumeOptions())
	a.runner.closing = append(a.runner.closing, func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = consumer.Stop(ended)
	})
	return kept(consumer), nil
}

func (a *arguments) within() (context.Context, context.CancelFunc) {
	limit := 10 * time.Second
	if v, ok := a.take("within"); ok {
		limit = seconds(v)
	}
	return context.WithTimeout(a.ctx, limit)
}

func take(a *arguments) (any, error) {
	consumer, count := native[*pgmq.Consumer](a.must("consumer")), a.number("count")
	ctx, cancel := a.within()
	defer cancel()
	taken := []any{}
	for m, err := range consumer.Messages(ctx) {
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, err
		}
		if taken = append(taken, message(m)); len(taken) == count {
			break
		}
	}
	return taken, nil
}

func handle(a *arguments) (any, error) {
	q := a.queue()
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	successes, limit, failFirst := a.number("count"), a.number("deliveries"), a.number("fail_first")
	options := pgmq.HandleOptions{
		ConsumeOptions: a.consumeOptions(),
		Concurrency:    a.number("concurrency"),
		RetryDelay:     a.span("retry_delay"),
	}
	switch action := a.text("action"); action {
	case "archive":
		options.Archive = true
	case "", "delete":
	default:
		return nil, fmt.Errorf("unknown action %q", action)
	}
	var mu sync.Mutex
	deliveries, done, failures := []any{}, 0, map[int64]int{}
	err := q.Handle(ctx, func(_ context.Context, m *pgmq.Message) error {
		body, err := m.Message()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		deliveries = append(deliveries, body)
		if len(deliveries) == limit {
			cancel()
		}
		if failures[m.MsgID] < failFirst {
			failures[m.MsgID]++
			return errors.New("the case wants it so")
		}
		if done++; done == successes {
			cancel()
		}
		return nil
	}, options)
	return map[string]any{"deliveries": deliveries}, err
}

func watch(a *arguments) (any, error) {
	var queues []string
	for _, queue := range a.list("queues") {
		queues = append(queues, queue.(string))
	}
	w, err := a.client.Watch(a.runner.ctx, queues...)
	if err != nil {
		return nil, err
	}
	type happened struct {
		event any
		err   error
	}
	// The events come as they come, also between two steps.
	coming := make(chan happened)
	go func() {
		defer close(coming)
		for event, err := range w.Events() {
			kind := strings.TrimPrefix(event.GetKind().String(), "QUEUE_EVENT_KIND_")
			select {
			case coming <- happened{map[string]any{"queue": event.GetQueue(), "kind": kind}, err}:
			case <-a.runner.ctx.Done():
				return
			}
		}
	}()
	next := func(ctx context.Context) (any, error) {
		select {
		case one := <-coming:
			return one.event, one.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return kept(next), nil
}

func events(a *arguments) (any, error) {
	next, count := native[func(context.Context) (any, error)](a.must("watcher")), a.number("count")
	ctx, cancel := a.within()
	defer cancel()
	all := []any{}
	for len(all) < count {
		event, err := next(ctx)
		if err == context.DeadlineExceeded {
			break
		}
		if err != nil {
			return nil, err
		}
		all = append(all, event)
	}
	return all, nil
}

func producer(a *arguments) (any, error) {
	p := a.queue().Producer(pgmq.ProducerOptions{Idempotent: a.flag("idempotent")})
	a.runner.closing = append(a.runner.closing, func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = p.Close(ended)
	})
	return kept(p), nil
}

func produce(a *arguments) (any, error) {
	given, ok := a.take("producer")
	if !ok {
		made, err := producer(a)
		if err != nil {
			return nil, err
		}
		given = made
	}
	p := native[*pgmq.Producer](given)
	var sendings []*pgmq.Sending
	for _, item := range a.list("messages") {
		one := a.sub(item)
		m := one.outgoing()
		one.done()
		sendings = append(sendings, p.SendAsync(a.ctx, m.Message, options(m)))
	}
	results := []any{}
	for _, sending := range sendings {
		s, err := sending.Wait()
		if failure, ok := failed(err); ok {
			results = append(results, map[string]any{"error": failure})
			continue
		}
		results = append(results, sent(s))
	}
	return results, nil
}

// hold locks messages by a transaction that stays open until the end of the case.
func hold(a *arguments) (any, error) {
	queue, ids := a.text("queue"), a.ids("msg_ids")
	transaction, err := a.client.Raw().Transaction.OpenTransaction(a.runner.ctx)
	if err != nil {
		return nil, err
	}
	// While it waits for a message, it is not idle.
	read := &pgmqv1.ReadBatchRequest{Queue: queue, Wait: durationpb.New(40 * time.Second)}
	for _, command := range []*pgmqv1.OpenTransactionRequest{
		{Command: &pgmqv1.OpenTransactionRequest_Begin{Begin: &pgmqv1.Begin{}}},
		{Command: &pgmqv1.OpenTransactionRequest_Delete{Delete: &pgmqv1.DeleteRequest{Queue: queue, MsgIds: ids}}},
		{Command: &pgmqv1.OpenTransactionRequest_ReadBatch{ReadBatch: read}},
	} {
		if err := transaction.Send(command); err != nil {
			return nil, err
		}
	}
	for range 2 {
		if _, err := transaction.Recv(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func serverPid() string {
	pid, err := os.ReadFile(os.Getenv("PGMQ_GRPC_SERVER_PID_FILE"))
	if err != nil {
		panic(err)
	}
	return strings.TrimSpace(string(pid))
}

func restartServer(a *arguments) (any, error) {
	signal := syscall.SIGTERM
	if a.flag("kill") {
		signal = syscall.SIGKILL
	}
	a.runner.ended = serverPid()
	pid, err := strconv.Atoi(a.runner.ended)
	if err != nil {
		return nil, err
	}
	return nil, syscall.Kill(pid, signal)
}

func waitForServer(a *arguments) (any, error) {
	ctx, cancel := context.WithTimeout(a.ctx, 60*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if pid := serverPid(); pid != "" && pid != a.runner.ended {
			if _, err := a.client.GetServerInfo(ctx); err == nil {
				return nil, nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, fmt.Errorf("the server did not come back")
}

func wait(a *arguments) (any, error) {
	time.Sleep(seconds(a.must("seconds")))
	return nil, nil
}

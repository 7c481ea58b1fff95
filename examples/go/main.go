// Orders come in, a worker bills them, and what was billed is archived and can be replayed.
//
//	PGMQ_GRPC_TARGET=127.0.0.1:50051 go run .
//
// ORDERS_QUEUE names the queue. EXAMPLE_ROLE says what to do: all, without it, does everything on a queue of its own and
// cleans up; intake sends orders to a queue that is there, and worker works on one until none has come for some seconds.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/big"
	"os"
	"sync"
	"time"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
)

const (
	orders = 20
	poison = 13
	idle   = 5 * time.Second
)

// Order is the body of a message. Its total is text, so that no language reads it as a float; the poison has none.
type Order struct {
	Order    int     `json:"order"`
	Total    *string `json:"total"`
	Language string  `json:"language"`
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	client, err := pgmq.Connect("", pgmq.WithName("orders of Go"))
	if err != nil {
		return err
	}
	defer client.Close()
	name := os.Getenv("ORDERS_QUEUE")
	if name == "" {
		name = "orders"
	}
	switch role := os.Getenv("EXAMPLE_ROLE"); role {
	case "intake":
		return intake(ctx, client.Queue(name))
	case "worker":
		_, err := work(ctx, client.Queue(name), 0)
		return err
	case "", "all":
		return everything(ctx, client, name)
	default:
		return fmt.Errorf("EXAMPLE_ROLE is %q: not all, intake or worker", role)
	}
}

// intake sends orders, many at once over one stream.
func intake(ctx context.Context, queue *pgmq.Queue) error {
	producer := queue.Producer(pgmq.ProducerOptions{Idempotent: true})
	sendings := make([]*pgmq.Sending, orders)
	for i := range sendings {
		order := Order{Order: i + 1, Language: "go"}
		if order.Order != poison {
			total := fmt.Sprintf("%d.50", order.Order)
			order.Total = &total
		}
		sendings[i] = producer.SendAsync(ctx, order)
	}
	for _, sending := range sendings {
		if _, err := sending.Wait(); err != nil {
			return err
		}
	}
	fmt.Printf("sent %d orders\n", orders)
	return producer.Close(ctx)
}

// bills is what a worker has done.
type bills struct {
	billed           map[string]int
	total            big.Rat
	retried, givenUp int
}

// work bills orders until enough are done, or none has come for a while.
func work(ctx context.Context, queue *pgmq.Queue, enough int) (*bills, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	quiet := time.AfterFunc(idle, stop)
	defer quiet.Stop()
	done := &bills{billed: map[string]int{}}
	var mu sync.Mutex
	handled := 0
	// What the handler returns an error for is released, and comes again when the queue's backoff is over.
	err := queue.Handle(ctx, func(ctx context.Context, message *pgmq.Message) error {
		quiet.Reset(idle)
		mu.Lock()
		defer mu.Unlock()
		if err := done.bill(ctx, message); err != nil {
			return err
		}
		if handled++; handled == enough {
			stop()
		}
		return nil
	}, pgmq.HandleOptions{Concurrency: 4, Archive: true})
	fmt.Printf("billed %v for %s, retried %d, gave up %d\n", done.billed, done.total.FloatString(2), done.retried, done.givenUp)
	return done, err
}

// bill bills one order. The service that it needs fails now and then, but not twice for one order.
func (b *bills) bill(ctx context.Context, message *pgmq.Message) error {
	var order Order
	if err := message.Decode(&order); err != nil {
		return err
	}
	if order.Order%5 == 0 && message.ReadCt == 1 {
		b.retried++
		return errors.New("the billing service is busy")
	}
	if order.Total == nil {
		// No repetition cures this.
		b.givenUp++
		_, err := message.DeadLetter(ctx, "it has no total")
		return err
	}
	amount, ok := new(big.Rat).SetString(*order.Total)
	if !ok {
		return fmt.Errorf("%q is no amount", *order.Total)
	}
	b.total.Add(&b.total, amount)
	b.billed[order.Language]++
	return nil
}

// everything shows the whole life of orders, and checks it.
func everything(ctx context.Context, client *pgmq.Client, name string) error {
	queue, failed := client.Queue(name), client.Queue(name+"_failed")
	if _, _, err := failed.Create(ctx, pgmq.CreateOptions{}); err != nil {
		return err
	}
	defer failed.Drop(ctx)
	_, _, err := queue.Create(ctx, pgmq.CreateOptions{Policy: &pgmq.Policy{
		DeadLetter:   &pgmq.DeadLetterPolicy{Queue: failed.Name(), MaxReceives: 5},
		RetryBackoff: &pgmq.RetryBackoff{Minimum: 100 * time.Millisecond, Maximum: time.Second},
	}})
	if err != nil {
		return err
	}
	defer queue.Drop(ctx)

	if err := intake(ctx, queue); err != nil {
		return err
	}
	if _, err := work(ctx, queue, orders); err != nil {
		return err
	}

	letters, err := failed.Read(ctx, pgmq.ReadOptions{MaxMessages: 10})
	if err != nil {
		return err
	}
	if len(letters) != 1 {
		return fmt.Errorf("the poison is not the only dead letter: %d", len(letters))
	}
	fmt.Printf("given up: %s, because of %s\n", letters[0].MessageText, letters[0].HeadersText)
	if _, err := letters[0].Delete(ctx); err != nil {
		return err
	}

	var archived []pgmq.ArchivedMessage
	for message, err := range queue.ListArchivedMessages(ctx, pgmq.ArchiveFilter{}, 0) {
		if err != nil {
			return err
		}
		archived = append(archived, message)
	}
	if len(archived) != orders-1 {
		return fmt.Errorf("%d orders are archived", len(archived))
	}
	fmt.Printf("the archive holds %d orders, the first of %s\n", len(archived), archived[0].ArchivedAt.Format(time.TimeOnly))

	moved, err := queue.Replay(ctx, pgmq.ReplayOptions{Filter: pgmq.ArchiveFilter{MsgIDs: []int64{archived[0].MsgID}}})
	if err != nil {
		return err
	}
	again, err := work(ctx, queue, int(moved.Count))
	if err == nil && again.billed["go"] != 1 {
		err = fmt.Errorf("the replayed order was billed %d times", again.billed["go"])
	}
	return err
}

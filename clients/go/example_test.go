package pgmq_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
)

type Order struct {
	Number int    `json:"number"`
	Total  string `json:"total"`
}

func bill(context.Context, Order) error { return nil }

var (
	ctx    = context.Background()
	client *pgmq.Client
	queue  *pgmq.Queue
)

func ExampleConnect() {
	client, err := pgmq.Connect("127.0.0.1:50051", pgmq.WithName("billing"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleQueue_Create() {
	// After five deliveries without success a message goes to another queue.
	_, _, err := client.Queue("orders").Create(ctx, pgmq.CreateOptions{Policy: &pgmq.Policy{
		DeadLetter:   &pgmq.DeadLetterPolicy{Queue: "orders_failed", MaxReceives: 5},
		RetryBackoff: &pgmq.RetryBackoff{Minimum: time.Second, Maximum: time.Minute},
	}})
	if err != nil {
		log.Fatal(err)
	}
}

func ExampleQueue_Send() {
	sent, err := queue.Send(ctx, Order{Number: 7, Total: "12.50"}, pgmq.WithDelay(time.Minute), pgmq.Idempotent())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sent.MsgID)
}

func ExampleQueue_Read() {
	messages, err := queue.Read(ctx, pgmq.ReadOptions{MaxMessages: 10, Wait: 20 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	for _, message := range messages {
		fmt.Println(message.MsgID, message.MessageText)
	}
	if _, err := queue.Archive(ctx, pgmq.Messages(messages...)); err != nil {
		log.Fatal(err)
	}
}

func ExampleQueue_Handle() {
	err := queue.Handle(ctx, func(ctx context.Context, message *pgmq.Message) error {
		var order Order
		if err := message.Decode(&order); err != nil {
			// No repetition cures this.
			_, err := message.DeadLetter(ctx, err.Error())
			return err
		}
		return bill(ctx, order)
	}, pgmq.HandleOptions{Concurrency: 8, RetryDelay: 10 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
}

func ExampleConsumer_Messages() {
	consumer := queue.Consume(ctx, pgmq.ConsumeOptions{MaxInFlight: 50})
	for message, err := range consumer.Messages(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if _, err := message.Delete(ctx); err != nil {
			log.Print(err)
		}
	}
}

func ExampleClient_Transact() {
	messages, err := queue.Read(ctx, pgmq.ReadOptions{})
	if err != nil || len(messages) == 0 {
		log.Fatal(err)
	}
	// The order is done and its invoice is sent, or neither.
	_, err = client.Transact(ctx, pgmq.Transaction{Idempotent: true, Operations: []pgmq.Operation{
		pgmq.OpDelete("orders", pgmq.Messages(messages...)),
		pgmq.OpSend("invoices", Order{Number: 7, Total: "12.50"}),
	}})
	if err != nil {
		log.Fatal(err)
	}
}

func ExampleError() {
	_, err := queue.Send(ctx, Order{Number: 7})
	var failure *pgmq.Error
	switch {
	case errors.Is(err, pgmq.ReasonQueueNotFound):
		log.Fatal("create the queue first")
	case errors.As(err, &failure) && failure.OutcomeUnknown:
		log.Print("the order may be in the queue, or not: ", failure.RequestID)
	case err != nil:
		log.Fatal(err)
	}
}

// Command bench measures the client beside direct calls of pgmq's functions by pgx, with equal concurrency, in rounds
// that take turns. It needs the server at PGMQ_GRPC_TARGET and the same server's database at DATABASE_URL.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
)

const (
	concurrency = 64
	rounds      = 3
	span        = 2 * time.Second
	stored      = 150_000
)

// body is what all send: 22 bytes.
var body = pgmq.Text(`{"order": 1234567890 }`)

func main() {
	ctx := context.Background()
	client, err := pgmq.Connect("")
	check(err)
	defer client.Close()
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	check(err)
	config.MaxConns = concurrency
	pool, err := pgxpool.NewWithConfig(ctx, config)
	check(err)
	defer pool.Close()
	b := bench{client, pool}

	measured := map[string][]float64{}
	for round := range rounds {
		for _, one := range []struct {
			name    string
			measure func(context.Context, string) float64
		}{
			{"send by a producer", b.produce},
			{"send", b.send},
			{"send by pgx", b.pgxSend},
			{"consume and settle", b.consume},
			{"read and delete by pgx", b.pgxReadDelete},
			{"lone send", b.loneSend},
			{"lone send by a producer", b.loneProduce},
			{"lone send by pgx", b.lonePgxSend},
		} {
			queue := fmt.Sprintf("bench_%d", round)
			_, _, err := client.CreateQueue(ctx, queue, pgmq.CreateOptions{})
			check(err)
			measured[one.name] = append(measured[one.name], one.measure(ctx, queue))
			check(client.DropQueue(ctx, queue))
		}
	}
	median := func(name string) float64 {
		slices.Sort(measured[name])
		return measured[name][rounds/2]
	}
	fmt.Printf("sends/s, %d outstanding: %.0f by Send, %.0f by a producer; pgmq.send by pgx: %.0f; ratio %.1f (goal 3)\n", concurrency,
		median("send"), median("send by a producer"), median("send by pgx"), median("send")/median("send by pgx"))
	fmt.Printf("consume and settle, messages/s: %.0f; pgmq.read and pgmq.delete by pgx: %.0f; ratio %.1f (goal 6)\n",
		median("consume and settle"), median("read and delete by pgx"), median("consume and settle")/median("read and delete by pgx"))
	fmt.Printf("p50 of a lone send, µs: %.0f; by a producer %.0f; by pgx %.0f\n",
		median("lone send"), median("lone send by a producer"), median("lone send by pgx"))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

type bench struct {
	client *pgmq.Client
	pool   *pgxpool.Pool
}

// many does something with so many goroutines for a while, and tells how often it was done in a second.
func many(do func()) float64 {
	var count atomic.Int64
	var workers sync.WaitGroup
	started := time.Now()
	for range concurrency {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for time.Since(started) < span {
				do()
				count.Add(1)
			}
		}()
	}
	workers.Wait()
	return float64(count.Load()) / time.Since(started).Seconds()
}

// alone does something again and again, and tells the median of the microseconds that it took.
func alone(do func()) float64 {
	var took []time.Duration
	for started := time.Now(); time.Since(started) < span/2; {
		begun := time.Now()
		do()
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds()) / 1000
}

func (b bench) sender(ctx context.Context, queue string) func() {
	q := b.client.Queue(queue)
	return func() {
		_, err := q.Send(ctx, body)
		check(err)
	}
}

func (b bench) producer(ctx context.Context, queue string) (send func(), end func()) {
	p := b.client.Queue(queue).Producer(pgmq.ProducerOptions{})
	send = func() {
		_, err := p.Send(ctx, body)
		check(err)
	}
	return send, func() { check(p.Close(ctx)) }
}

func (b bench) pgxSender(ctx context.Context, queue string) func() {
	return func() {
		var id int64
		check(b.pool.QueryRow(ctx, "SELECT * FROM pgmq.send($1::text, $2::jsonb)", queue, string(body)).Scan(&id))
	}
}

func (b bench) produce(ctx context.Context, queue string) float64 {
	send, end := b.producer(ctx, queue)
	defer end()
	return many(send)
}

func (b bench) loneProduce(ctx context.Context, queue string) float64 {
	send, end := b.producer(ctx, queue)
	defer end()
	return alone(send)
}

func (b bench) send(ctx context.Context, queue string) float64 { return many(b.sender(ctx, queue)) }

func (b bench) loneSend(ctx context.Context, queue string) float64 {
	return alone(b.sender(ctx, queue))
}

func (b bench) pgxSend(ctx context.Context, queue string) float64 {
	return many(b.pgxSender(ctx, queue))
}

func (b bench) lonePgxSend(ctx context.Context, queue string) float64 {
	return alone(b.pgxSender(ctx, queue))
}

// fill stores messages.
func (b bench) fill(ctx context.Context, queue string) {
	_, err := b.pool.Exec(ctx, "SELECT count(*) FROM pgmq.send_batch($1::text, array_fill($2::jsonb, ARRAY[$3::int]))", queue, string(body), stored)
	check(err)
}

func (b bench) consume(ctx context.Context, queue string) float64 {
	b.fill(ctx, queue)
	ctx, stop := context.WithCancel(ctx)
	var count atomic.Int64
	started := time.Now()
	time.AfterFunc(span, stop)
	check(b.client.Queue(queue).Handle(ctx, func(context.Context, *pgmq.Message) error {
		if count.Add(1) == stored {
			stop()
		}
		return nil
	}, pgmq.HandleOptions{Concurrency: concurrency, ConsumeOptions: pgmq.ConsumeOptions{MaxInFlight: 1000}}))
	return float64(count.Load()) / time.Since(started).Seconds()
}

func (b bench) pgxReadDelete(ctx context.Context, queue string) float64 {
	b.fill(ctx, queue)
	return many(func() {
		var id int64
		check(b.pool.QueryRow(ctx, "SELECT msg_id FROM pgmq.read($1::text, 30, 1)", queue).Scan(&id))
		_, err := b.pool.Exec(ctx, "SELECT pgmq.delete($1::text, $2::bigint)", queue, id)
		check(err)
	})
}

package tests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// database connects to the server's own Postgres, over its socket.
func database(t *testing.T) *pgx.Conn {
	t.Helper()
	data := filepath.Join(filepath.Dir(os.Getenv("PGMQ_GRPC_SERVER_PID_FILE")), "data")
	password, err := os.ReadFile(filepath.Join(data, "password"))
	if err != nil {
		t.Fatal(err)
	}
	connection, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s user=pgmq password=%s dbname=pgmq", filepath.Join(data, "run"), password))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close(context.Background()) })
	return connection
}

func execute(t *testing.T, connection *pgx.Conn, sql string, arguments ...any) {
	t.Helper()
	if _, err := connection.Exec(t.Context(), fmt.Sprintf(sql, arguments...)); err != nil {
		t.Fatal(err)
	}
}

// forbid lets nobody delete or release a message of the queue.
func forbid(t *testing.T, queue *pgmq.Queue, id int64) {
	t.Helper()
	connection := database(t)
	execute(t, connection, `CREATE OR REPLACE FUNCTION public.go_test_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$`)
	execute(t, connection, `CREATE TRIGGER kept BEFORE DELETE ON pgmq.q_%s FOR EACH ROW WHEN (OLD.msg_id = %d) EXECUTE FUNCTION public.go_test_refuse()`, queue.Name(), id)
	execute(t, connection, `CREATE TRIGGER held BEFORE UPDATE ON pgmq.q_%s FOR EACH ROW WHEN (OLD.msg_id = %d AND NEW.vt < OLD.vt) EXECUTE FUNCTION public.go_test_refuse()`, queue.Name(), id)
}

func TestWhatSettlesSeveralMessagesMayHaveSettledSomeWhenOneIsRefused(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1, 2, 3)
	messages, err := queue.Read(t.Context(), pgmq.ReadOptions{MaxMessages: 3})
	if err != nil || len(messages) != 3 {
		t.Fatal(messages, err)
	}
	forbid(t, queue, 2)
	for count, unknown := range map[int]bool{1: false, 2: true} {
		_, err := queue.Delete(t.Context(), pgmq.Messages(messages[1:1+count]...))
		if failure := failureOf(t, err); failure.Reason != pgmq.ReasonRefusedByDatabase || failure.OutcomeUnknown != unknown {
			t.Errorf("%d messages: %+v", count, failure)
		}
	}
	operation := pgmq.OpDelete(queue.Name(), pgmq.Messages(messages[:2]...))
	_, err = connect(t).Transact(t.Context(), pgmq.Transaction{Operations: []pgmq.Operation{operation}})
	if failure := failureOf(t, err); failure.Reason != pgmq.ReasonRefusedByDatabase || failure.OutcomeUnknown {
		t.Errorf("a transaction: %+v", failure)
	}
}

func TestALockedMessageLeavesOpenWhatBecameOfOthers(t *testing.T) {
	t.Parallel()
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1, 2)
	messages, err := queue.Read(t.Context(), pgmq.ReadOptions{MaxMessages: 2})
	if err != nil || len(messages) != 2 {
		t.Fatal(messages, err)
	}
	connection := database(t)
	execute(t, connection, `BEGIN`)
	execute(t, connection, `SELECT 1 FROM pgmq.q_%s WHERE msg_id = 1 FOR UPDATE`, queue.Name())
	for count, unknown := range map[int]bool{1: false, 2: true} {
		_, err := queue.Archive(t.Context(), pgmq.Messages(messages[:count]...))
		if failure := failureOf(t, err); failure.Reason != pgmq.ReasonQueueBusy || failure.OutcomeUnknown != unknown {
			t.Errorf("%d messages: %+v", count, failure)
		}
	}
}

// receipts gives the number of receipts of a command of Consume.
func receipts(message any) int {
	request, ok := message.(*pgmqv1.ConsumeRequest)
	if !ok {
		return 0
	}
	return len(request.GetSettle().GetReceipts())
}

func TestMessagesThatAreSettledTogetherDoNotShareARefusal(t *testing.T) {
	var w wire
	settling, free := make(chan struct{}), make(chan struct{})
	var commands, largest atomic.Int32
	w.sending = func(message any) {
		count := receipts(message)
		if count == 0 {
			return
		}
		largest.Store(max(largest.Load(), int32(count)))
		if commands.Add(1) == 1 {
			close(settling)
			<-free
		}
	}
	queue := newQueue(t, connect(t, w.options()), pgmq.CreateOptions{})
	const all = 20
	bodies := make([]any, all)
	send(t, queue, bodies...)
	forbid(t, queue, all/2)
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{VisibilityTimeout: time.Hour})
	held := take(t, consumer, all)

	// Somebody else deletes one meanwhile, which the refused command might have done as well.
	if _, err := queue.Delete(t.Context(), pgmq.IDs(all)); err != nil {
		t.Fatal(err)
	}

	failures := make([]error, all)
	var settlers group
	var begun atomic.Int32
	for i, message := range held {
		settlers.Go(func() {
			if i > 0 {
				<-settling
			}
			begun.Add(1)
			outcome, err := message.Delete(within(t))
			if failures[i] = err; err == nil && outcome != pgmq.Done {
				failures[i] = fmt.Errorf("it is %s", outcome)
			}
		})
	}
	eventually(t, "all have begun", func() bool { return begun.Load() == all })
	// What they put behind the first command while it is held up travels as one.
	time.Sleep(patience / 100)
	close(free)
	settlers.Wait()
	for i, err := range failures {
		if held[i].MsgID != all/2 {
			if err != nil {
				t.Errorf("message %d: %v", held[i].MsgID, err)
			}
			continue
		}
		if failure := failureOf(t, err); failure.Reason != pgmq.ReasonRefusedByDatabase || failure.OutcomeUnknown || failure.RequestID == "" {
			t.Errorf("%+v", failure)
		}
	}
	if left := length(t, queue); left != 1 || largest.Load() < 2 {
		t.Errorf("%d messages are left; the largest command has had %d receipts", left, largest.Load())
	}
}

func TestWhatWasNotTakenIsGivenBackThoughOneIsRefused(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1, 2, 3)
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{VisibilityTimeout: time.Hour})
	eventually(t, "all messages are delivered", func() bool {
		metrics, err := queue.Metrics(t.Context(), false)
		return err == nil && metrics.InFlightLength == 3
	})
	forbid(t, queue, 2)
	if err := consumer.Stop(within(t)); err != nil {
		t.Error(err)
	}
	metrics, err := queue.Metrics(t.Context(), false)
	if err != nil || metrics.VisibleLength != 2 || metrics.InFlightLength != 1 {
		t.Error(metrics, err)
	}
}

func TestAHandledMessageThatCannotBeSettledComesBackAndFreesItsPlace(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	send(t, queue, 1, 2)
	forbid(t, queue, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var again, other atomic.Bool
	var handling group
	handling.Go(func() {
		handler := func(_ context.Context, message *pgmq.Message) error {
			if message.MsgID == 2 {
				other.Store(true)
			} else if message.ReadCt > 1 {
				again.Store(true)
			}
			return nil
		}
		options := pgmq.ConsumeOptions{MaxInFlight: 1, VisibilityTimeout: time.Second}
		if err := queue.Handle(ctx, handler, pgmq.HandleOptions{ConsumeOptions: options}); err != nil {
			t.Error(err)
		}
	})
	defer handling.Wait()
	defer cancel()
	eventually(t, "the other message is handled, and the refused one again", func() bool { return other.Load() && again.Load() })
}

func TestAReasonThatCannotBeWrittenSpoilsNoOtherSettlement(t *testing.T) {
	var w wire
	var opened atomic.Int32
	w.open = func() error {
		opened.Add(1)
		return nil
	}
	queue := newQueue(t, connect(t, w.options()), pgmq.CreateOptions{})
	send(t, queue, 1, 2)
	consumer := queue.Consume(t.Context(), pgmq.ConsumeOptions{})
	held := take(t, consumer, 2)
	_, err := held[0].DeadLetter(within(t), "\xff")
	if failure := failureOf(t, err); failure.Field != "reason" || failure.OutcomeUnknown {
		t.Errorf("%+v", failure)
	}
	for _, message := range held {
		if outcome, err := message.Delete(within(t)); outcome != pgmq.Done {
			t.Error(outcome, err)
		}
	}
	if err := consumer.Stop(within(t)); err != nil || opened.Load() != 1 {
		t.Errorf("%v; %d streams were opened", err, opened.Load())
	}
}

package tests

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// patience is how long anything may take. Nothing here waits so long unless it is broken.
const patience = 30 * time.Second

// connect connects to the server of the tests.
func connect(t *testing.T, options ...pgmq.Option) *pgmq.Client {
	t.Helper()
	if os.Getenv("PGMQ_GRPC_TARGET") == "" {
		t.Fatal("PGMQ_GRPC_TARGET names no server: run clients/go/run.sh test")
	}
	client, err := pgmq.Connect("", options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// newQueue makes a queue for one test.
func newQueue(t *testing.T, client *pgmq.Client, options pgmq.CreateOptions) *pgmq.Queue {
	t.Helper()
	queue := client.Queue("go_" + strings.ToLower(rand.Text()[:20]))
	if _, _, err := queue.Create(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = queue.Drop(context.Background()) })
	return queue
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if so() {
			return
		}
	}
	t.Fatalf("not so within %v: %s", patience, what)
}

type order struct {
	Order int64       `json:"order"`
	Total json.Number `json:"total"`
}

func TestAValueIsSentAndDecodedIntoTheTypeOfTheUser(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	given := order{Order: 9007199254740993, Total: "12.50"}
	sent, err := queue.Send(t.Context(), given, pgmq.WithHeaders(map[string]any{"trace": "t1"}))
	if err != nil || sent.MsgID != 1 {
		t.Fatal(sent, err)
	}
	messages, err := queue.Read(t.Context(), pgmq.ReadOptions{})
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	var came order
	if err := messages[0].Decode(&came); err != nil || came != given {
		t.Errorf("came %+v, %v", came, err)
	}
	headers, err := messages[0].Headers()
	if err != nil || headers["trace"] != "t1" {
		t.Errorf("headers %v, %v", headers, err)
	}
	if outcome, err := messages[0].Delete(t.Context()); err != nil || outcome != pgmq.Done {
		t.Errorf("delete: %v, %v", outcome, err)
	}
}

func TestNumbersOfAnySizeKeepTheirDigits(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	large, _ := new(big.Int).SetString("123456789012345678901234567890", 10)
	if _, err := queue.Send(t.Context(), []any{large, json.Number("0.10"), "<&>"}); err != nil {
		t.Fatal(err)
	}
	messages, err := queue.Read(t.Context(), pgmq.ReadOptions{})
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	if text := messages[0].MessageText; text != `[123456789012345678901234567890, 0.10, "<&>"]` {
		t.Errorf("text: %s", text)
	}
	value, err := messages[0].Message()
	if list := value.([]any); err != nil || list[0] != json.Number(large.String()) || list[1] != json.Number("0.10") {
		t.Errorf("value: %v, %v", value, err)
	}
}

// shouting is another JSON library.
type shouting struct{}

func (shouting) Marshal(value any) ([]byte, error) {
	data, err := json.Marshal(value)
	return []byte(strings.ToUpper(string(data))), err
}

func (shouting) Unmarshal(data []byte, into any) error {
	return json.Unmarshal([]byte(strings.ToLower(string(data))), into)
}

func TestTheJSONLibraryCanBeReplaced(t *testing.T) {
	queue := newQueue(t, connect(t, pgmq.WithCodec(shouting{})), pgmq.CreateOptions{})
	if _, err := queue.Send(t.Context(), "hello"); err != nil {
		t.Fatal(err)
	}
	messages, err := queue.Read(t.Context(), pgmq.ReadOptions{})
	if err != nil || len(messages) != 1 || messages[0].MessageText != `"HELLO"` {
		t.Fatal(messages, err)
	}
	if value, err := messages[0].Message(); err != nil || value != "hello" {
		t.Errorf("value: %v, %v", value, err)
	}
}

func TestErrorsTellWhatTheServerTells(t *testing.T) {
	client := connect(t)
	_, err := client.Queue("go_nowhere").Send(t.Context(), 1)
	var failure *pgmq.Error
	if !errors.As(err, &failure) {
		t.Fatalf("%T: %v", err, err)
	}
	if failure.Code != codes.NotFound || failure.Reason != pgmq.ReasonQueueNotFound || failure.Metadata["queue"] != "go_nowhere" ||
		failure.OutcomeUnknown || failure.RequestID == "" {
		t.Errorf("%+v", failure)
	}
	if !errors.Is(err, pgmq.ReasonQueueNotFound) || errors.Is(err, pgmq.ReasonQueueBusy) || status.Code(err) != codes.NotFound {
		t.Errorf("errors.Is and status.Code do not know %v", err)
	}
	_, err = client.Queue("go_nowhere").SendBatch(t.Context(), []pgmq.OutgoingMessage{{Message: 1}, {Message: pgmq.Text("{")}})
	if !errors.As(err, &failure) || failure.Reason != pgmq.ReasonInvalidJSON || failure.Field != "messages[1].message" {
		t.Errorf("%+v", failure)
	}
}

func TestAValueWithoutAJSONFormIsRefusedBeforeItLeaves(t *testing.T) {
	_, err := connect(t).Queue("go_nowhere").Send(t.Context(), func() {})
	var failure *pgmq.Error
	if !errors.As(err, &failure) || failure.Code != codes.InvalidArgument || failure.Field != "message" || failure.OutcomeUnknown {
		t.Fatalf("%+v", failure)
	}
	var cause *json.UnsupportedTypeError
	if !errors.As(err, &cause) {
		t.Errorf("the cause is lost: %v", err)
	}
}

// A server that nobody is: its port was free a moment ago.
func nobody(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func TestACallThatHasNotLeftHasAKnownOutcome(t *testing.T) {
	client, err := pgmq.Connect(nobody(t), pgmq.WithTimeout(300*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Queue("orders").Send(t.Context(), 1)
	var failure *pgmq.Error
	if !errors.As(err, &failure) || failure.OutcomeUnknown {
		t.Fatalf("%+v", failure)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = client.Queue("orders").Send(ctx, 1); !errors.Is(err, context.Canceled) || !errors.As(err, &failure) || failure.OutcomeUnknown {
		t.Errorf("%+v", failure)
	}
}

// silent accepts connections and says nothing.
func silent(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { connection.Close() })
		}
	}()
	return listener.Addr().String()
}

func TestEveryUnaryCallHasADeadline(t *testing.T) {
	client, err := pgmq.Connect(silent(t), pgmq.WithTimeout(200*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.GetQueue(context.Background(), "orders"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestMetadataAndCredentialsGoWithEveryCall(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	asked := 0
	client := connect(t, pgmq.WithName("go test"), pgmq.WithCredentials(func(context.Context) (map[string]string, error) {
		asked++
		return map[string]string{"pgmq-queue": queue.Name()}, nil
	}))
	if _, err := client.Queue(queue.Name()).Send(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Queue("go_other").Send(t.Context(), 1); !errors.Is(err, pgmq.ReasonMetadataMismatch) || asked < 2 {
		t.Errorf("%v, asked %d times", err, asked)
	}
	names := []string{}
	for c, err := range client.ListClients(t.Context(), pgmq.ListClientsOptions{Queue: queue.Name()}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, c.GetName())
	}
	if len(names) != 1 || names[0] != "go test" {
		t.Errorf("clients: %v", names)
	}
	broken := errors.New("no token")
	client = connect(t, pgmq.WithCredentials(func(context.Context) (map[string]string, error) { return nil, broken }))
	var failure *pgmq.Error
	if _, err := client.GetQueue(t.Context(), queue.Name()); !errors.As(err, &failure) || failure.Code != codes.Unauthenticated {
		t.Error(err)
	}
}

func TestInterceptorsAndTheRawStubsWork(t *testing.T) {
	var seen []string
	client := connect(t, pgmq.WithDialOptions(grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			seen = append(seen, method)
			return invoke(ctx, method, request, reply, connection, options...)
		})))
	if _, err := client.GetServerInfo(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := client.Raw().Queue.GetServerInfo(t.Context(), &pgmqv1.GetServerInfoRequest{})
	if err != nil || info.GetServerVersion() != pgmq.Version {
		t.Errorf("%v, %v", info, err)
	}
	if len(seen) != 2 || seen[0] != pgmqv1.QueueService_GetServerInfo_FullMethodName {
		t.Errorf("seen: %v", seen)
	}
}

func TestAListAsksForItsPagesAndCanBeLeft(t *testing.T) {
	calls := 0
	client := connect(t, pgmq.WithDialOptions(grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
			calls++
			return invoke(ctx, method, request, reply, connection, options...)
		})))
	queue := newQueue(t, client, pgmq.CreateOptions{})
	if _, err := queue.SendBatch(t.Context(), make([]pgmq.OutgoingMessage, 5)); err != nil {
		t.Fatal(err)
	}
	calls = 0
	var ids []int64
	for message, err := range queue.ListMessages(t.Context(), pgmq.ListMessagesOptions{PageSize: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		if ids = append(ids, message.MsgID); len(ids) == 3 {
			break
		}
	}
	if len(ids) != 3 || calls != 2 {
		t.Errorf("%v, with %d calls", ids, calls)
	}
}

func TestAnIdempotentTransactionIsAppliedOnce(t *testing.T) {
	queue := newQueue(t, connect(t), pgmq.CreateOptions{})
	client := connect(t)
	if _, err := queue.Send(t.Context(), "input"); err != nil {
		t.Fatal(err)
	}
	messages, err := queue.Read(t.Context(), pgmq.ReadOptions{})
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	transaction := pgmq.Transaction{
		Operations:      []pgmq.Operation{pgmq.OpDelete(queue.Name(), pgmq.Messages(messages...)), pgmq.OpSend(queue.Name(), "output")},
		DeduplicationID: rand.Text(),
	}
	first, err := client.Transact(t.Context(), transaction)
	if err != nil || first.Deduplicated || first.Results[1].GetSend().GetMsgId() != 2 {
		t.Fatal(first, err)
	}
	second, err := client.Transact(t.Context(), transaction)
	if err != nil || !second.Deduplicated || second.Results[1].GetSend().GetMsgId() != 2 {
		t.Error(second, err)
	}
	_, err = client.Transact(t.Context(), pgmq.Transaction{Operations: transaction.Operations, Idempotent: true})
	if !errors.Is(err, pgmq.ReasonReceiptNotFound) {
		t.Error(err)
	}
}

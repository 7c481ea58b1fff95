package pgmq

import (
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"math"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// Version is the version of this client, and of the server that it was made with.
const Version = "0.1.0"

const (
	defaultTarget  = "127.0.0.1:50051"
	defaultTimeout = 30 * time.Second
	// Replies stay under 3.5 MiB, and pieces of a stream under 1 MiB unless a larger message comes alone.
	maxReply = 16 << 20
	// As large as the server's own windows.
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
)

// Client is one connection to a server, or to a name behind which there are several. It may be used by many
// goroutines at once.
type Client struct {
	connection *grpc.ClientConn
	raw        Raw
	timeout    time.Duration
	codec      Codec
	logger     *slog.Logger
	sends      *sharing
	closing    *closing
}

// Raw holds the generated stubs, over the client's own connection, with everything that has no word here:
// OpenTransaction above all. Their errors are those of gRPC.
type Raw struct {
	Queue       pgmqv1.QueueServiceClient
	Topic       pgmqv1.TopicServiceClient
	Admin       pgmqv1.AdminServiceClient
	Transaction pgmqv1.TransactionServiceClient
}

// Option is a setting of a client.
type Option func(*settings)

type settings struct {
	transport credentials.TransportCredentials
	metadata  callMetadata
	dial      []grpc.DialOption
	timeout   time.Duration
	codec     Codec
	logger    *slog.Logger
}

// WithTLS encrypts the connection. Without a configuration, the server's certificate is checked by the system's
// roots; a configuration says otherwise (RootCAs) and gives the client a certificate of its own (Certificates).
func WithTLS(configuration *tls.Config) Option {
	return func(s *settings) { s.transport = credentials.NewTLS(configuration) }
}

// WithName tells the server who calls: it shows in ListClients and in the server's log. At most 128 bytes of
// printable ASCII.
func WithName(name string) Option {
	return WithMetadata(map[string]string{"pgmq-client": name})
}

// WithMetadata sends metadata with every call. Keys are lower-case.
func WithMetadata(metadata map[string]string) Option {
	return func(s *settings) { maps.Copy(s.metadata.fixed, metadata) }
}

// WithCredentials asks a function for the metadata of each call, such as a token that expires. An error of the
// function fails the call. It gets the context of the call. A stream that many share asks once, when it is opened, and
// has none of their contexts: what differs from one [Queue.Send] to the next belongs into the context's outgoing
// metadata.
func WithCredentials(credentials func(context.Context) (map[string]string, error)) Option {
	return func(s *settings) { s.metadata.asked = credentials }
}

// WithTimeout replaces the 30 seconds that a unary call has if its context has no deadline, and that Close waits at most.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.timeout = timeout }
}

// WithCodec replaces encoding/json.
func WithCodec(codec Codec) Option {
	return func(s *settings) { s.codec = codec }
}

// WithLogger tells where the client logs. Without it, it is silent.
func WithLogger(logger *slog.Logger) Option {
	return func(s *settings) { s.logger = logger }
}

// WithDialOptions hands options to gRPC, such as interceptors and the stats handler of OpenTelemetry.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// Connect makes a client for the server at a target: "host:port", "unix:/path" or "dns:///name:port". An empty target
// means the one in the environment's PGMQ_GRPC_TARGET, else 127.0.0.1:50051. It is plain text unless [WithTLS] is
// given.
//
// Nothing is connected before the first call.
func Connect(target string, options ...Option) (*Client, error) {
	if target == "" {
		target = os.Getenv("PGMQ_GRPC_TARGET")
	}
	if target == "" {
		target = defaultTarget
	}
	s := settings{
		transport: insecure.NewCredentials(),
		metadata:  callMetadata{fixed: map[string]string{}},
		codec:     standardCodec{},
	}
	if err := checkTarget(target); err != nil {
		return nil, err
	}
	for _, option := range options {
		if option != nil {
			option(&s)
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.timeout == 0 {
		s.timeout = defaultTimeout
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	connection, err := grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(s.transport),
		grpc.WithPerRPCCredentials(s.metadata),
		grpc.WithUserAgent("pgmq-grpc-go/" + Version),
		// This package repeats calls itself, where the contract allows it and as the server asks.
		grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	}, s.dial...)...)
	if err != nil {
		return nil, refused(codes.InvalidArgument, "target", err.Error(), err)
	}
	return &Client{
		connection: connection,
		raw: Raw{
			Queue:       pgmqv1.NewQueueServiceClient(connection),
			Topic:       pgmqv1.NewTopicServiceClient(connection),
			Admin:       pgmqv1.NewAdminServiceClient(connection),
			Transaction: pgmqv1.NewTransactionServiceClient(connection),
		},
		timeout: s.timeout,
		codec:   s.codec,
		logger:  s.logger,
		sends:   newSharing(),
		closing: newClosing(),
	}, nil
}

// Raw gives the generated stubs.
func (c *Client) Raw() Raw { return c.raw }

// Queue gives a queue by its name. It asks nobody, so the queue need not exist yet.
func (c *Client) Queue(name string) *Queue { return &Queue{client: c, name: name} }

// callMetadata is what every call of a client carries. It is the caller's affair whether that needs TLS.
type callMetadata struct {
	fixed map[string]string
	asked func(context.Context) (map[string]string, error)
}

func (m callMetadata) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if m.asked == nil {
		return m.fixed, nil
	}
	asked, err := m.asked(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkMetadata(asked); err != nil {
		return nil, err
	}
	all := maps.Clone(m.fixed)
	maps.Copy(all, asked)
	return all, nil
}

func (m callMetadata) RequireTransportSecurity() bool { return false }

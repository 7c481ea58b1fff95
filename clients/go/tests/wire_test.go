package tests

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// wire sees what a client sends, and holds it up where a test says so.
type wire struct {
	// How many unary sends and Produce streams there were.
	sends, streams atomic.Int32
	// Ends with the Produce stream that was opened last.
	last atomic.Value
	// Called, where set, before a unary send leaves, before a stream is opened, and with what a stream sends and
	// receives.
	beforeSend func()
	open       func() error
	sending    func(message any)
	receiving  func()
}

func (w *wire) options() pgmq.Option {
	return pgmq.WithDialOptions(grpc.WithChainUnaryInterceptor(w.unary), grpc.WithChainStreamInterceptor(w.stream))
}

func (w *wire) unary(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if method == pgmqv1.QueueService_Send_FullMethodName {
		w.sends.Add(1)
		if w.beforeSend != nil {
			w.beforeSend()
		}
	}
	return invoke(ctx, method, request, reply, connection, options...)
}

func (w *wire) stream(ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	if method == pgmqv1.QueueService_Produce_FullMethodName {
		w.streams.Add(1)
		w.last.Store(ctx)
	}
	if w.open != nil {
		if err := w.open(); err != nil {
			return nil, err
		}
	}
	stream, err := open(ctx, description, connection, method, options...)
	return watched{stream, w}, err
}

type watched struct {
	grpc.ClientStream
	wire *wire
}

func (s watched) SendMsg(message any) error {
	if s.wire.sending != nil {
		s.wire.sending(message)
	}
	return s.ClientStream.SendMsg(message)
}

func (s watched) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if s.wire.receiving != nil {
		s.wire.receiving()
	}
	return err
}

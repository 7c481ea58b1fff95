// Package pgmq is the client of pgmq-grpc: PGMQ, the message queue in Postgres, over gRPC.
//
// A [Client] is one connection. [Client.Queue] gives a [Queue]: a name with methods. A [Message] knows its receipt, so
// it settles itself. [Queue.Handle] and [Queue.Consume] take messages as they come, and survive restarts of the server.
// [Queue.Send] of many goroutines share a stream by themselves; a [Producer] is a stream of one's own.
//
// Unary calls have 30 seconds unless their context has a deadline or [WithTimeout] says otherwise. Calls that fail are
// repeated where the contract says that this is safe. Errors are [Error].
package pgmq

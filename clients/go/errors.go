package pgmq

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// Reason names the way in which a call failed: a name of the contract's ErrorReason without its prefix, such as
// [ReasonQueueNotFound]. A reason that is newer than this client is its name all the same.
//
// A Reason is an error, so that errors.Is(err, pgmq.ReasonQueueNotFound) tells whether a call failed for it.
type Reason string

// Error gives the reason's name.
func (r Reason) Error() string { return string(r) }

// Error is a failed call. All errors of this package that come from a server or from the way to it are one:
//
//	var failure *pgmq.Error
//	if errors.As(err, &failure) && failure.OutcomeUnknown { … }
//
// errors.Is compares it with a [Reason], and with context.Canceled and context.DeadlineExceeded.
type Error struct {
	// Code is the status code of gRPC.
	Code codes.Code
	// Reason is empty where the error does not come from the server: from the transport, or from the client itself.
	Reason Reason
	// Message is a sentence for people. Programs should not read it.
	Message string
	// Field is the path of the first field that is wrong, such as "messages[17].message", where one is.
	Field string
	// Metadata holds the values that belong to the reason.
	Metadata map[string]string
	// RequestID is the call's id in the server's log, where the call came so far.
	RequestID string
	// RetryDelay is how long the server asks to wait before a repeat; zero where it does not say.
	RetryDelay time.Duration
	// OutcomeUnknown tells whether the call may have been applied. It is false only where the server says that it was
	// not, or where the call has not left.
	OutcomeUnknown bool

	fromServer bool
	noRepeat   bool
	cause      error
}

// Error tells the code, the reason and the message.
func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString("pgmq: ")
	if e.Reason != "" {
		text.WriteString(string(e.Reason))
	} else {
		text.WriteString(e.Code.String())
	}
	if e.Field != "" {
		fmt.Fprintf(&text, " (%s)", e.Field)
	}
	text.WriteString(": " + e.Message)
	if e.RequestID != "" {
		fmt.Fprintf(&text, " [request %s]", e.RequestID)
	}
	return text.String()
}

// Unwrap gives the error beneath, if there is one, such as that of the JSON library.
func (e *Error) Unwrap() error { return e.cause }

// Is tells whether the target is the error's reason, or the context's error that its code stands for.
func (e *Error) Is(target error) bool {
	switch target {
	case context.Canceled:
		return e.Code == codes.Canceled
	case context.DeadlineExceeded:
		return e.Code == codes.DeadlineExceeded
	}
	reason, ok := target.(Reason)
	return ok && reason != "" && reason == e.Reason
}

// GRPCStatus gives the error as gRPC has it, for status.Code and status.FromError.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// newError makes an Error of what a call ended with. left tells whether anything of the call reached the transport.
func newError(err error, trailer metadata.MD, left bool) *Error {
	if err == nil {
		return nil
	}
	var already *Error
	if errors.As(err, &already) {
		return already
	}
	given, ok := status.FromError(err)
	if !ok {
		given = status.FromContextError(err)
	}
	e := &Error{Code: given.Code(), Message: given.Message()}
	for _, detail := range given.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == "pgmq.v1" {
				e.fromServer = true
				e.Reason, e.Metadata, e.Field = Reason(detail.GetReason()), detail.GetMetadata(), detail.GetMetadata()["field"]
			}
		case *errdetails.RequestInfo:
			e.RequestID = detail.GetRequestId()
		case *errdetails.RetryInfo:
			e.RetryDelay = detail.GetRetryDelay().AsDuration()
		}
	}
	if e.RequestID == "" {
		e.RequestID = strings.Join(trailer.Get("x-request-id"), "")
	}
	if pushback := trailer.Get("grpc-retry-pushback-ms"); len(pushback) > 0 {
		// As in gRPC: anything but a number of milliseconds forbids to repeat.
		milliseconds, err := strconv.Atoi(pushback[0])
		e.noRepeat = err != nil || milliseconds < 0
		e.RetryDelay = max(e.RetryDelay, time.Duration(milliseconds)*time.Millisecond)
	}
	e.OutcomeUnknown = left && (!e.fromServer || leavesOpen(e.Reason, e.Code))
	return e
}

// commandError makes an Error of a failure inside a reply of a stream.
func commandError(failure *pgmqv1.CommandError) *Error {
	e := &Error{
		Code:       codes.Code(failure.GetCode()),
		Reason:     Reason(strings.TrimPrefix(failure.GetReason().String(), "ERROR_REASON_")),
		Message:    failure.GetMessage(),
		Field:      failure.GetMetadata()["field"],
		Metadata:   failure.GetMetadata(),
		RequestID:  failure.GetRequestId(),
		RetryDelay: failure.GetRetryDelay().AsDuration(),
		fromServer: true,
	}
	e.OutcomeUnknown = leavesOpen(e.Reason, e.Code)
	return e
}

// leavesOpen tells whether the contract leaves open if a call that failed for this reason was applied. A reason that
// is newer than this client is judged by its code.
func leavesOpen(reason Reason, code codes.Code) bool {
	switch reason {
	case ReasonOutcomeUnknown, ReasonOutcomeUnknownRetrySafe, ReasonDeadlineExceeded, ReasonInternal:
		return true
	}
	if _, known := pgmqv1.ErrorReason_value["ERROR_REASON_"+string(reason)]; known {
		return false
	}
	switch code {
	case codes.Unknown, codes.Internal, codes.DeadlineExceeded, codes.Unavailable, codes.Canceled, codes.DataLoss:
		return true
	}
	return false
}

// ofOneAmongSeveral tells whether one message can be the reason why the settling of several failed: the others may be
// settled.
func (e *Error) ofOneAmongSeveral() bool {
	return e != nil && (e.Reason == ReasonQueueBusy || e.Reason == ReasonRefusedByDatabase)
}

// repeatable tells whether the call may be made again: where the server says so, where it has not left, and, for calls
// that are safe to repeat, where nobody knows what became of it.
func (e *Error) repeatable(safe bool) bool {
	return e.Code == codes.Unavailable && !e.noRepeat && (safe || e.fromServer || !e.OutcomeUnknown)
}

// lasting tells whether opening a stream again cannot help.
func (e *Error) lasting() bool {
	switch e.Code {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.OutOfRange,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}

func (e *Error) retryDelay() time.Duration {
	if e == nil {
		return 0
	}
	return e.RetryDelay
}

// refused is an error of the client's own: nothing has left.
func refused(code codes.Code, field, message string, cause error) *Error {
	return &Error{Code: code, Field: field, Message: message, cause: cause}
}

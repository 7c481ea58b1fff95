package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// Under this key, a map holds what it stands for: a message, a consumer.
const nativeKey = "\x00"

func native[T any](v any) T { return v.(map[string]any)[nativeKey].(T) }

func kept(v any) map[string]any { return map[string]any{nativeKey: v} }

// arguments are those of a step. What is asked for is taken out: what is left at the end is unknown.
type arguments struct {
	ctx    context.Context
	runner *runner
	client *pgmq.Client
	with   map[string]any
}

func (a *arguments) take(key string) (any, bool) {
	v, ok := a.with[key]
	delete(a.with, key)
	return v, ok && v != nil
}

func (a *arguments) text(key string) string {
	v, _ := a.take(key)
	text, _ := v.(string)
	return text
}

func (a *arguments) flag(key string) bool {
	v, _ := a.take(key)
	flag, _ := v.(bool)
	return flag
}

func (a *arguments) number(key string) int {
	v, ok := a.take(key)
	if !ok {
		return 0
	}
	return whole(v)
}

// span is a span as the client takes it: 0 for none, and pgmq.Zero for one of no time.
func (a *arguments) span(key string) time.Duration {
	v, ok := a.take(key)
	switch {
	case !ok:
		return 0
	case rational(v).Sign() == 0:
		return pgmq.Zero
	}
	return seconds(v)
}

func (a *arguments) moment(key string) time.Time {
	v, ok := a.take(key)
	if !ok {
		return time.Time{}
	}
	if from, ok := v.(map[string]any); ok {
		return time.Now().Add(seconds(from["in_seconds"]))
	}
	return time.Unix(0, int64(seconds(v)))
}

func (a *arguments) list(key string) []any {
	v, _ := a.take(key)
	list, _ := v.([]any)
	return list
}

func (a *arguments) sub(v any) *arguments {
	copied := map[string]any{}
	for key, item := range v.(map[string]any) {
		copied[key] = item
	}
	return &arguments{a.ctx, a.runner, a.client, copied}
}

// nested is an argument that is a map; nil where it is missing.
func (a *arguments) nested(key string) *arguments {
	v, ok := a.take(key)
	if !ok {
		return nil
	}
	return a.sub(v)
}

func (a *arguments) done() {
	for key := range a.with {
		panic(fmt.Sprintf("unknown key %q", key))
	}
}

func (a *arguments) queue() *pgmq.Queue { return a.client.Queue(a.text("queue")) }

func (a *arguments) ids(key string) []int64 {
	var ids []int64
	for _, id := range a.list(key) {
		ids = append(ids, int64(whole(id)))
	}
	return ids
}

func (a *arguments) ordering() pgmq.Ordering {
	return pgmq.Ordering(enumeration(pgmqv1.Ordering_value, "ORDERING_", a.text("ordering")))
}

// enumeration is the number of a word; unknown words have a number that nobody knows.
func enumeration(values map[string]int32, prefix, word string) int32 {
	if word == "" {
		return 0
	}
	if number, ok := values[prefix+word]; ok {
		return number
	}
	return 9999
}

// value is an argument that is null where it is given so.
func (a *arguments) value(key string) any {
	v, ok := a.with[key]
	delete(a.with, key)
	if text, given := a.take(key + "_text"); given {
		return pgmq.Text(text.(string))
	}
	if !ok && key == "message" {
		return pgmq.Text("")
	}
	return v
}

func (a *arguments) outgoing() pgmq.OutgoingMessage {
	return pgmq.OutgoingMessage{
		Message:         a.value("message"),
		Headers:         a.value("headers"),
		Delay:           a.span("delay"),
		VisibleAt:       a.moment("visible_at"),
		Group:           a.text("group"),
		DeduplicationID: a.text("deduplication_id"),
		Idempotent:      a.flag("idempotent"),
	}
}

func (a *arguments) outgoings() []pgmq.OutgoingMessage {
	idempotent := a.flag("idempotent")
	var all []pgmq.OutgoingMessage
	for _, item := range a.list("messages") {
		one := a.sub(item)
		message := one.outgoing()
		one.done()
		message.Idempotent = idempotent
		all = append(all, message)
	}
	return all
}

// options are those of a message, for the calls that take them.
func options(m pgmq.OutgoingMessage) pgmq.SendOption {
	return func(to *pgmq.OutgoingMessage) { *to = m }
}

func (a *arguments) items() pgmq.Items {
	if list, ok := a.with["messages"]; ok {
		delete(a.with, "messages")
		var messages []*pgmq.Message
		for _, item := range list.([]any) {
			messages = append(messages, native[*pgmq.Message](item))
		}
		return pgmq.Messages(messages...)
	}
	if ids := a.ids("msg_ids"); ids != nil {
		return pgmq.IDs(ids...)
	}
	var receipts []string
	for _, receipt := range a.list("receipts") {
		receipts = append(receipts, receipt.(string))
	}
	return pgmq.Receipts(receipts...)
}

func (a *arguments) policy() *pgmq.Policy {
	p := a.nested("policy")
	if p == nil {
		return nil
	}
	policy := &pgmq.Policy{
		DefaultVisibilityTimeout: p.span("default_visibility_timeout"),
		DefaultDelay:             p.span("default_delay"),
		DefaultWait:              p.span("default_wait"),
		MaxMessageBytes:          p.number("max_message_bytes"),
		DeduplicationWindow:      p.span("deduplication_window"),
		ArchiveRetention:         p.span("archive_retention"),
		DefaultOrdering:          pgmq.Ordering(enumeration(pgmqv1.Ordering_value, "ORDERING_", p.text("default_ordering"))),
	}
	if d := p.nested("dead_letter"); d != nil {
		policy.DeadLetter = &pgmq.DeadLetterPolicy{Queue: d.text("queue"), MaxReceives: int32(d.number("max_receives"))}
		d.done()
	}
	if b := p.nested("retry_backoff"); b != nil {
		policy.RetryBackoff = &pgmq.RetryBackoff{Minimum: b.span("minimum"), Maximum: b.span("maximum"), Multiplier: b.float("multiplier"), Jitter: b.float("jitter")}
		b.done()
	}
	p.done()
	return policy
}

func (a *arguments) float(key string) float64 {
	v, ok := a.take(key)
	if !ok {
		return 0
	}
	f, _ := rational(v).Float64()
	return f
}

func (a *arguments) partitioning() *pgmq.Partitioning {
	p := a.nested("partitioning")
	if p == nil {
		return nil
	}
	defer p.done()
	return &pgmq.Partitioning{Interval: p.text("interval"), Retention: p.text("retention"), Premake: int32(p.number("premake"))}
}

func (a *arguments) filter() pgmq.ArchiveFilter {
	return pgmq.ArchiveFilter{MsgIDs: a.ids("msg_ids"), ArchivedAfter: a.moment("archived_after"), ArchivedBefore: a.moment("archived_before")}
}

func number[T int | int32 | int64](n T) any { return json.Number(fmt.Sprint(n)) }

func message(m *pgmq.Message) any {
	body, err := m.Message()
	if err != nil {
		panic(err)
	}
	headers, err := m.Headers()
	if err != nil {
		panic(err)
	}
	return map[string]any{
		nativeKey:      m,
		"queue":        m.Queue,
		"msg_id":       number(m.MsgID),
		"read_ct":      number(m.ReadCt),
		"enqueued_at":  moment(m.EnqueuedAt),
		"last_read_at": moment(m.LastReadAt),
		"vt":           moment(m.VT),
		"message":      body,
		"message_text": m.MessageText,
		"message_json": written(body),
		"headers":      unlessNil(headers),
		"headers_text": m.HeadersText,
		"receipt":      m.Receipt,
	}
}

// written is a value as the client's JSON library writes it.
func written(v any) string {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		panic(err)
	}
	return strings.TrimSuffix(buffer.String(), "\n")
}

func unlessNil(m map[string]any) any {
	if m == nil {
		return nil
	}
	return m
}

func listOf[T any](items []T, one func(T) any) []any {
	list := []any{}
	for _, item := range items {
		list = append(list, one(item))
	}
	return list
}

func sent(s pgmq.Sent) any {
	return map[string]any{"msg_id": number(s.MsgID), "deduplicated": s.Deduplicated}
}

func outcome(o pgmq.Outcome) any { return strings.TrimPrefix(o.String(), "OUTCOME_") }

func result(r *pgmq.Result) any { return outcome(r.Outcome) }

// failed gives an error of the client as a map.
func failed(err error) (any, bool) {
	var failure *pgmq.Error
	if !errors.As(err, &failure) {
		return nil, false
	}
	metadata := map[string]any{}
	for key, value := range failure.Metadata {
		metadata[key] = value
	}
	m := map[string]any{
		"code": codeName(failure.Code.String()), "reason": string(failure.Reason), "field": failure.Field,
		"outcome_unknown": failure.OutcomeUnknown, "metadata": metadata, "request_id": failure.RequestID,
		"message": failure.Message,
	}
	if failure.RetryDelay != 0 {
		m["retry_delay"] = span(failure.RetryDelay)
	}
	return m, true
}

// codeName makes INVALID_ARGUMENT of InvalidArgument.
func codeName(name string) string {
	if name == "OK" {
		return name
	}
	var upper strings.Builder
	for i, letter := range name {
		if i > 0 && letter >= 'A' && letter <= 'Z' {
			upper.WriteByte('_')
		}
		upper.WriteRune(letter)
	}
	return strings.ToUpper(upper.String())
}

// generated makes a map of a generated message, by the contract's names.
func generated[M proto.Message](m M) any {
	fields := map[string]any{}
	all := m.ProtoReflect().Descriptor().Fields()
	for i := range all.Len() {
		field := all.Get(i)
		if field.HasPresence() && !m.ProtoReflect().Has(field) {
			continue
		}
		fields[string(field.Name())] = several(field, m.ProtoReflect().Get(field))
	}
	return fields
}

// several gives a field's value: a list, a map from texts, or a plain one.
func several(field protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch {
	case field.IsList():
		list := []any{}
		for i := range v.List().Len() {
			list = append(list, plain(field, v.List().Get(i)))
		}
		return list
	case field.IsMap():
		texts := map[string]any{}
		v.Map().Range(func(key protoreflect.MapKey, one protoreflect.Value) bool {
			texts[key.String()] = plain(field.MapValue(), one)
			return true
		})
		return texts
	}
	return plain(field, v)
}

func plain(field protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch field.Kind() {
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *durationpb.Duration:
			return span(m.AsDuration())
		case *timestamppb.Timestamp:
			return moment(m.AsTime())
		default:
			return generated(m)
		}
	case protoreflect.EnumKind:
		name := string(field.Enum().Values().ByNumber(v.Enum()).Name())
		unspecified := string(field.Enum().Values().ByNumber(0).Name())
		return strings.TrimPrefix(name, strings.TrimSuffix(unspecified, "UNSPECIFIED"))
	case protoreflect.StringKind:
		return v.String()
	case protoreflect.BoolKind:
		return v.Bool()
	}
	return json.Number(fmt.Sprint(v.Interface()))
}

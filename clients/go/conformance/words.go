package main

import (
	"fmt"
	"iter"

	pgmq "github.com/pgmq-grpc/pgmq-grpc/clients/go"
	"github.com/pgmq-grpc/pgmq-grpc/clients/go/pgmqv1"
)

// words are what a step can do. They are filled at the start, because some of them do others.
var words map[string]func(*arguments) (any, error)

func init() {
	words = map[string]func(*arguments) (any, error){
		"create_queue": func(a *arguments) (any, error) {
			info, created, err := a.queue().Create(a.ctx, pgmq.CreateOptions{
				Kind:         pgmq.Kind(enumeration(pgmqv1.QueueKind_value, "QUEUE_KIND_", a.text("kind"))),
				Layout:       a.layout(),
				Partitioning: a.partitioning(),
				Policy:       a.policy(),
				FailIfExists: a.flag("fail_if_exists"),
			})
			return map[string]any{"queue": generated(info), "created": created}, err
		},
		"get_queue": func(a *arguments) (any, error) {
			info, err := a.queue().Get(a.ctx)
			return generated(info), err
		},
		"list_queues": func(a *arguments) (any, error) {
			return collect(a.client.ListQueues(a.ctx, a.listOptions()), generated)
		},
		"update_queue": func(a *arguments) (any, error) {
			q := a.queue()
			var clear []string
			for _, field := range a.list("clear") {
				clear = append(clear, field.(string))
			}
			p := a.policy()
			if p == nil {
				p = &pgmq.Policy{}
			}
			info, err := q.Update(a.ctx, *p, clear...)
			return generated(info), err
		},
		"drop_queue": func(a *arguments) (any, error) { return nil, a.queue().Drop(a.ctx) },
		"purge_queue": func(a *arguments) (any, error) {
			count, err := a.queue().Purge(a.ctx)
			return number(count), err
		},
		"get_queue_metrics": func(a *arguments) (any, error) {
			m, err := a.queue().Metrics(a.ctx, a.flag("include_archive"))
			return generated(m), err
		},
		"list_queue_metrics": func(a *arguments) (any, error) {
			return collect(a.client.ListQueueMetrics(a.ctx, a.listOptions()), generated)
		},
		"set_queue_layout": func(a *arguments) (any, error) {
			info, err := a.queue().SetLayout(a.ctx, a.layout())
			return generated(info), err
		},
		"send": func(a *arguments) (any, error) {
			q, m := a.queue(), a.outgoing()
			s, err := q.Send(a.ctx, m.Message, options(m))
			return sent(s), err
		},
		"send_batch": func(a *arguments) (any, error) {
			s, err := a.queue().SendBatch(a.ctx, a.outgoings())
			return listOf(s, sent), err
		},
		"read": func(a *arguments) (any, error) {
			messages, err := a.queue().Read(a.ctx, pgmq.ReadOptions{
				MaxMessages: a.number("max_messages"), VisibilityTimeout: a.span("visibility_timeout"), Wait: a.span("wait"),
				Ordering: a.ordering(), Conditional: a.value("conditional"),
			})
			return listOf(messages, message), err
		},
		"pop": func(a *arguments) (any, error) {
			messages, err := a.queue().Pop(a.ctx, a.number("max_messages"))
			return listOf(messages, message), err
		},
		"delete": func(a *arguments) (any, error) {
			results, err := a.queue().Delete(a.ctx, a.items())
			return listOf(results, result), err
		},
		"archive": func(a *arguments) (any, error) {
			results, err := a.queue().Archive(a.ctx, a.items())
			return listOf(results, result), err
		},
		"release": func(a *arguments) (any, error) {
			results, err := a.queue().Release(a.ctx, a.items(), a.span("delay"))
			return listOf(results, result), err
		},
		"dead_letter": func(a *arguments) (any, error) {
			results, err := a.queue().DeadLetter(a.ctx, a.items(), a.text("reason"))
			return listOf(results, result), err
		},
		"set_visibility_timeout": func(a *arguments) (any, error) {
			var results []*pgmq.Result
			var err error
			if _, ok := a.with["visible_at"]; ok {
				results, err = a.queue().SetVisibleAt(a.ctx, a.items(), a.moment("visible_at"))
			} else {
				results, err = a.queue().SetVisibilityTimeout(a.ctx, a.items(), a.span("visibility_timeout"))
			}
			return listOf(results, result), err
		},
		"settle":   settle,
		"transact": transact,
		"validate_name": func(a *arguments) (any, error) {
			for key, name := range map[string]func(string) pgmq.Name{"queue": pgmq.QueueName, "routing_key": pgmq.RoutingKey, "pattern": pgmq.Pattern} {
				if _, ok := a.with[key]; ok {
					return nil, a.client.ValidateName(a.ctx, name(a.text(key)))
				}
			}
			return nil, a.client.ValidateName(a.ctx, pgmq.Name{})
		},
		"get_server_info": func(a *arguments) (any, error) {
			info, err := a.client.GetServerInfo(a.ctx)
			return generated(info), err
		},
		"bind_topic": func(a *arguments) (any, error) {
			created, err := a.queue().BindTopic(a.ctx, a.text("pattern"))
			return map[string]any{"created": created}, err
		},
		"unbind_topic": func(a *arguments) (any, error) {
			removed, err := a.queue().UnbindTopic(a.ctx, a.text("pattern"))
			return map[string]any{"removed": removed}, err
		},
		"list_topic_bindings": func(a *arguments) (any, error) {
			return collect(a.client.ListTopicBindings(a.ctx, a.text("queue"), a.number("page_size")), generated)
		},
		"test_routing": func(a *arguments) (any, error) {
			matches, err := a.client.TestRouting(a.ctx, a.text("routing_key"))
			return listOf(matches, generated), err
		},
		"send_topic": func(a *arguments) (any, error) {
			key, require, m := a.text("routing_key"), a.flag("require_match"), a.outgoing()
			send := a.client.SendTopic
			if require {
				send = a.client.SendTopicMatching
			}
			s, err := send(a.ctx, key, m.Message, options(m))
			return generated(s), err
		},
		"send_topic_batch": func(a *arguments) (any, error) {
			copies, err := a.client.SendTopicBatch(a.ctx, a.text("routing_key"), a.outgoings(), a.flag("require_match"))
			return listOf(copies, generated), err
		},
		"list_messages": func(a *arguments) (any, error) {
			return collect(a.queue().ListMessages(a.ctx, pgmq.ListMessagesOptions{
				State:  pgmq.State(enumeration(pgmqv1.MessageState_value, "MESSAGE_STATE_", a.text("state"))),
				MsgIDs: a.ids("msg_ids"), PageSize: a.number("page_size"),
			}), message)
		},
		"list_archived_messages": func(a *arguments) (any, error) {
			return collect(a.queue().ListArchivedMessages(a.ctx, a.filter(), a.number("page_size")), func(m pgmq.ArchivedMessage) any {
				archived := message(m.Message).(map[string]any)
				archived["archived_at"] = moment(m.ArchivedAt)
				return archived
			})
		},
		"delete_archived_messages": func(a *arguments) (any, error) {
			moved, err := a.queue().DeleteArchivedMessages(a.ctx, a.filter(), a.number("max_messages"))
			return map[string]any{"deleted_count": number(moved.Count), "more": moved.More}, err
		},
		"replay": func(a *arguments) (any, error) {
			moved, err := a.queue().Replay(a.ctx, pgmq.ReplayOptions{Filter: a.filter(), TargetQueue: a.text("target_queue"), MaxMessages: a.number("max_messages")})
			return map[string]any{"replayed_count": number(moved.Count), "more": moved.More}, err
		},
		"redrive": func(a *arguments) (any, error) {
			moved, err := a.client.Queue(a.text("dead_letter_queue")).Redrive(a.ctx, pgmq.RedriveOptions{
				MsgIDs: a.ids("msg_ids"), TargetQueue: a.text("target_queue"), MaxMessages: a.number("max_messages"),
			})
			return map[string]any{"moved_count": number(moved.Count), "more": moved.More}, err
		},
		"create_fifo_index": func(a *arguments) (any, error) {
			if a.flag("all_queues") {
				return nil, a.client.CreateFifoIndexes(a.ctx)
			}
			return nil, a.client.CreateFifoIndex(a.ctx, a.text("queue"))
		},
		"convert_archive_partitioned": func(a *arguments) (any, error) {
			return nil, a.client.ConvertArchivePartitioned(a.ctx, a.text("queue"), a.partitioning())
		},
		"enable_notifications": func(a *arguments) (any, error) {
			settings, err := a.client.EnableNotifications(a.ctx, a.text("queue"), a.span("throttle_interval"))
			return generated(settings), err
		},
		"update_notifications": func(a *arguments) (any, error) {
			settings, err := a.client.UpdateNotifications(a.ctx, a.text("queue"), a.span("throttle_interval"))
			return generated(settings), err
		},
		"disable_notifications": func(a *arguments) (any, error) {
			return nil, a.client.DisableNotifications(a.ctx, a.text("queue"))
		},
		"list_notifications": func(a *arguments) (any, error) {
			return collect(a.client.ListNotifications(a.ctx, a.listOptions()), generated)
		},
		"list_clients": func(a *arguments) (any, error) {
			return collect(a.client.ListClients(a.ctx, pgmq.ListClientsOptions{
				Queue: a.text("queue"), Prefix: a.text("prefix"), PageSize: a.number("page_size"),
			}), generated)
		},
		"install_pgmq": func(a *arguments) (any, error) {
			previous, current, err := a.client.InstallPgmq(a.ctx)
			return map[string]any{"previous_version": previous, "pgmq_version": current}, err
		},
		"connect":         connect,
		"consume":         consume,
		"take":            take,
		"stop":            func(a *arguments) (any, error) { return nil, native[*pgmq.Consumer](a.must("consumer")).Stop(a.ctx) },
		"handle":          handle,
		"watch":           watch,
		"events":          events,
		"producer":        producer,
		"produce":         produce,
		"close":           func(a *arguments) (any, error) { return nil, native[*pgmq.Producer](a.must("producer")).Close(a.ctx) },
		"hold":            hold,
		"restart_server":  restartServer,
		"wait_for_server": waitForServer,
		"wait":            wait,
	}
}

func (a *arguments) must(key string) any {
	v, ok := a.take(key)
	if !ok {
		panic("the argument " + key + " is missing")
	}
	return v
}

func (a *arguments) layout() pgmq.Layout {
	return pgmq.Layout(enumeration(pgmqv1.QueueLayout_value, "QUEUE_LAYOUT_", a.text("layout")))
}

func (a *arguments) listOptions() pgmq.ListOptions {
	return pgmq.ListOptions{
		Prefix: a.text("prefix"), PageSize: a.number("page_size"),
		DeadLetterQueue: a.text("dead_letter_queue"), IncludeArchive: a.flag("include_archive"),
	}
}

// collect gives the whole list.
func collect[T any](items iter.Seq2[T, error], one func(T) any) (any, error) {
	list := []any{}
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		list = append(list, one(item))
	}
	return list, nil
}

func settle(a *arguments) (any, error) {
	m := native[*pgmq.Message](a.must("message"))
	var o pgmq.Outcome
	var err error
	switch action := a.text("action"); action {
	case "delete":
		o, err = m.Delete(a.ctx)
	case "archive":
		o, err = m.Archive(a.ctx)
	case "release":
		o, err = m.Release(a.ctx, a.span("delay"))
	case "dead_letter":
		o, err = m.DeadLetter(a.ctx, a.text("reason"))
	case "extend":
		o, err = m.Extend(a.ctx, a.span("visibility_timeout"))
	default:
		return nil, fmt.Errorf("unknown action %q", action)
	}
	return outcome(o), err
}

func transact(a *arguments) (any, error) {
	transaction := pgmq.Transaction{DeduplicationID: a.text("deduplication_id"), Idempotent: a.flag("idempotent")}
	for _, operation := range a.list("operations") {
		for kind, with := range operation.(map[string]any) {
			o := a.sub(with)
			transaction.Operations = append(transaction.Operations, o.operation(kind))
			o.done()
		}
	}
	came, err := a.client.Transact(a.ctx, transaction)
	if err != nil {
		return nil, err
	}
	return map[string]any{"results": listOf(came.Results, transactResult), "deduplicated": came.Deduplicated}, nil
}

// transactResult gives what an operation gave, under its name.
func transactResult(r *pgmqv1.TransactResult) any {
	one := generated(r).(map[string]any)
	for kind, given := range one {
		if list, ok := given.(map[string]any)["results"]; ok {
			one[kind] = list
		}
		for i, item := range asList(one[kind]) {
			if outcome, ok := item.(map[string]any)["outcome"]; ok {
				asList(one[kind])[i] = outcome
			}
		}
	}
	return one
}

func asList(v any) []any {
	list, _ := v.([]any)
	return list
}

func (a *arguments) operation(kind string) pgmq.Operation {
	switch kind {
	case "send":
		queue, m := a.text("queue"), a.outgoing()
		return pgmq.OpSend(queue, m.Message, options(m))
	case "send_batch":
		return pgmq.OpSendBatch(a.text("queue"), a.outgoings())
	case "send_topic":
		return pgmq.OpSendTopic(a.text("routing_key"), a.outgoing(), a.flag("require_match"))
	case "delete":
		return pgmq.OpDelete(a.text("queue"), a.items())
	case "archive":
		return pgmq.OpArchive(a.text("queue"), a.items())
	case "release":
		return pgmq.OpRelease(a.text("queue"), a.items(), a.span("delay"))
	case "dead_letter":
		return pgmq.OpDeadLetter(a.text("queue"), a.items(), a.text("reason"))
	case "set_visibility_timeout":
		if _, ok := a.with["visible_at"]; ok {
			return pgmq.OpSetVisibleAt(a.text("queue"), a.items(), a.moment("visible_at"))
		}
		return pgmq.OpSetVisibilityTimeout(a.text("queue"), a.items(), a.span("visibility_timeout"))
	}
	panic("unknown operation " + kind)
}

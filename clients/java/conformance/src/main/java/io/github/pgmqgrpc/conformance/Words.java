package io.github.pgmqgrpc.conformance;

import io.github.pgmqgrpc.ArchiveFilter;
import io.github.pgmqgrpc.CreateOptions;
import io.github.pgmqgrpc.ItemResult;
import io.github.pgmqgrpc.Items;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.MoveResult;
import io.github.pgmqgrpc.Ordering;
import io.github.pgmqgrpc.Outcome;
import io.github.pgmqgrpc.OutgoingMessage;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.QueueKind;
import io.github.pgmqgrpc.QueueLayout;
import io.github.pgmqgrpc.QueuePolicy;
import io.github.pgmqgrpc.ReadOptions;
import io.github.pgmqgrpc.TransactResult;
import io.github.pgmqgrpc.Transaction;
import io.github.pgmqgrpc.v1.Partitioning;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Makes steps through the client. */
final class Words {
    private final PgmqClient client;
    private final List<AutoCloseable> opened;

    Words(PgmqClient client, List<AutoCloseable> opened) {
        this.client = client;
        this.opened = opened;
    }

    Object perform(String word, Arguments with) throws Exception {
        return switch (word) {
            case "create_queue" -> client.createQueue(with.text("queue"), options -> create(options, with));
            case "get_queue" -> client.getQueue(with.text("queue"));
            case "set_queue_layout" ->
                client.setQueueLayout(with.text("queue"), with.word("layout", QueueLayout.class));
            case "update_queue" ->
                client.updateQueue(
                        with.text("queue"),
                        policy(with.has("policy") ? Values.map(with.get("policy")) : Map.of()),
                        with.has("clear") ? with.list("clear").toArray(String[]::new) : new String[0]);
            case "list_queues" -> client.listQueues(narrow(with)).toList();
            case "drop_queue" -> nothing(() -> client.dropQueue(with.text("queue")));
            case "purge_queue" -> client.purgeQueue(with.text("queue"));
            case "get_queue_metrics" -> queue(with).metrics(with.flag("include_archive"));
            case "list_queue_metrics" -> client.listQueueMetrics(narrow(with)).toList();
            case "validate_name" -> nothing(() -> client.validateName(narrow(with)));
            case "get_server_info" -> client.getServerInfo();
            case "install_pgmq" -> client.installPgmq();
            case "create_fifo_index" -> nothing(() -> fifoIndex(with));
            case "convert_archive_partitioned" ->
                nothing(() -> client.convertArchivePartitioned(with.text("queue"), partitioning(with)));
            case "enable_notifications" ->
                client.enableNotifications(with.text("queue"), with.span("throttle_interval", null));
            case "update_notifications" ->
                client.updateNotifications(with.text("queue"), with.span("throttle_interval", null));
            case "disable_notifications" -> nothing(() -> client.disableNotifications(with.text("queue")));
            case "list_notifications" -> client.listNotifications(narrow(with)).toList();
            case "list_clients" -> client.listClients(narrow(with)).toList();
            case "connect" -> connect(with);
            case "bind_topic" -> Map.of("created", client.bindTopic(with.text("pattern"), with.text("queue")));
            case "unbind_topic" -> Map.of("removed", client.unbindTopic(with.text("pattern"), with.text("queue")));
            case "list_topic_bindings" -> client.listTopicBindings(narrow(with)).toList();
            case "test_routing" -> client.testRouting(with.text("routing_key"));
            case "send_topic" -> client.sendTopic(with.text("routing_key"), message(with), with.flag("require_match"));
            case "send_topic_batch" ->
                client.sendTopicBatch(with.text("routing_key"), messages(with), with.flag("require_match"));
            default -> ofMessages(word, with);
        };
    }

    private Object ofMessages(String word, Arguments with) throws Exception {
        return switch (word) {
            case "send" -> queue(with).send(message(with));
            case "send_batch" -> queue(with).sendBatch(messages(with));
            case "read" -> queue(with).read(options -> read(options, with));
            case "pop" ->
                with.has("max_messages")
                        ? queue(with).pop(with.number("max_messages", 0))
                        : queue(with).pop();
            case "delete" -> outcomes(queue(with).delete(items(with)));
            case "archive" -> outcomes(queue(with).archive(items(with)));
            case "release" -> outcomes(queue(with).release(items(with), with.span("delay", null)));
            case "dead_letter" -> outcomes(queue(with).deadLetter(items(with), with.text("reason", "")));
            case "set_visibility_timeout" ->
                outcomes(
                        with.has("visible_at")
                                ? queue(with).setVisibilityTimeout(items(with), with.moment("visible_at"))
                                : queue(with).setVisibilityTimeout(items(with), with.span("visibility_timeout", null)));
            case "transact" -> transact(with);
            case "settle" -> settle(with);
            case "list_messages" -> queue(with).listMessages(narrow(with)).toList();
            case "list_archived_messages" ->
                queue(with)
                        .listArchivedMessages(filter(with), with.number("page_size", 0))
                        .toList();
            case "delete_archived_messages" ->
                moved(
                        "deleted_count",
                        queue(with).deleteArchivedMessages(filter(with), with.number("max_messages", 0)));
            case "replay" ->
                moved(
                        "replayed_count",
                        queue(with)
                                .replay(filter(with), with.text("target_queue", ""), with.number("max_messages", 0)));
            case "redrive" ->
                moved(
                        "moved_count",
                        client.queue(with.text("dead_letter_queue")).redrive(narrow(with)));
            default -> new Streams(client, opened).perform(word, with);
        };
    }

    private Queue queue(Arguments with) {
        return client.queue(with.text("queue"));
    }

    private Object connect(Arguments with) {
        var builder = PgmqClient.builder();
        with.with("name", given -> builder.name(given.text("name")));
        with.with("metadata", given -> {
            Map<String, String> metadata = new java.util.HashMap<>();
            Values.map(given.get("metadata")).forEach((name, value) -> metadata.put(name, (String) value));
            builder.metadata(metadata);
        });
        PgmqClient other = builder.build();
        opened.add(other);
        return other;
    }

    private void fifoIndex(Arguments with) {
        if (with.flag("all_queues")) {
            client.createFifoIndexes();
        } else {
            client.createFifoIndex(with.text("queue"));
        }
    }

    private static CreateOptions create(CreateOptions options, Arguments with) {
        with.with("kind", given -> options.kind(given.word("kind", QueueKind.class)));
        with.with("layout", given -> options.layout(given.word("layout", QueueLayout.class)));
        with.with("policy", given -> options.policy(policy(Values.map(given.get("policy")))));
        with.with("partitioning", given -> options.partitioning(partitioning(given)));
        return with.flag("fail_if_exists") ? options.failIfExists() : options;
    }

    private static Partitioning partitioning(Arguments with) {
        return Values.fill(Partitioning.newBuilder(), Values.map(with.get("partitioning")))
                .build();
    }

    private static QueuePolicy policy(Map<String, Object> fields) {
        QueuePolicy policy = QueuePolicy.none();
        for (Map.Entry<String, Object> field : fields.entrySet()) {
            Object value = field.getValue();
            policy = switch (field.getKey()) {
                case "default_visibility_timeout" -> policy.defaultVisibilityTimeout(Values.span(value));
                case "default_delay" -> policy.defaultDelay(Values.span(value));
                case "default_wait" -> policy.defaultWait(Values.span(value));
                case "max_message_bytes" -> policy.maxMessageBytes(((Number) value).intValue());
                case "deduplication_window" -> policy.deduplicationWindow(Values.span(value));
                case "default_ordering" -> policy.defaultOrdering(Ordering.valueOf((String) value));
                case "archive_retention" -> policy.archiveRetention(Values.span(value));
                case "dead_letter" -> {
                    Arguments given = new Arguments(Values.map(value));
                    yield policy.deadLetter(given.text("queue"), given.number("max_receives", 0));
                }
                case "retry_backoff" -> {
                    Arguments given = new Arguments(Values.map(value));
                    yield policy.retryBackoff(new QueuePolicy.RetryBackoff(
                            given.span("minimum", null),
                            given.span("maximum", null),
                            given.has("multiplier") ? ((Number) given.get("multiplier")).doubleValue() : 0,
                            given.has("jitter") ? ((Number) given.get("jitter")).doubleValue() : 0));
                }
                default -> throw new Failure("unknown field of a policy: " + field.getKey());
            };
        }
        return policy;
    }

    static OutgoingMessage message(Arguments with) {
        OutgoingMessage message = with.has("message_text")
                ? OutgoingMessage.ofText(with.text("message_text"))
                : OutgoingMessage.of(with.get("message"));
        with.with("headers", given -> message.headers(Values.map(given.get("headers"))));
        with.with("headers_text", given -> message.headersText(given.text("headers_text")));
        with.with("delay", given -> message.delay(given.span("delay", null)));
        with.with("visible_at", given -> message.visibleAt(given.moment("visible_at")));
        with.with("group", given -> message.group(given.text("group")));
        with.with("deduplication_id", given -> message.deduplicationId(given.text("deduplication_id")));
        return with.flag("idempotent") ? message.idempotent() : message;
    }

    static List<OutgoingMessage> messages(Arguments with) {
        boolean idempotent = with.flag("idempotent");
        List<OutgoingMessage> messages = new ArrayList<>();
        for (Object given : with.list("messages")) {
            Arguments fields = new Arguments(Values.map(given));
            messages.add(idempotent ? message(fields).idempotent() : message(fields));
            fields.checkAllUsed();
        }
        return messages;
    }

    private static ReadOptions read(ReadOptions options, Arguments with) {
        with.with("max_messages", given -> options.maxMessages(given.number("max_messages", 0)));
        with.with("visibility_timeout", given -> options.visibilityTimeout(given.span("visibility_timeout", null)));
        with.with("wait", given -> options.wait(given.span("wait", null)));
        with.with("ordering", given -> options.ordering(given.word("ordering", Ordering.class)));
        with.with("conditional", given -> options.conditional(given.get("conditional")));
        return options;
    }

    private static Items items(Arguments with) {
        if (with.has("messages")) {
            return Items.of(with.list("messages").stream().map(Words::held).toList());
        }
        if (with.has("receipts")) {
            return Items.receipts(
                    with.list("receipts").stream().map(String.class::cast).toList());
        }
        return Items.ids((with.has("msg_ids") ? with.list("msg_ids") : List.of())
                .stream().mapToLong(id -> ((Number) id).longValue()).toArray());
    }

    private static Message held(Object saved) {
        return (Message) Values.map(saved).get(Values.OBJECT);
    }

    private static Outcome settle(Arguments with) {
        Message message = held(with.get("message"));
        String action = with.text("action");
        return switch (action) {
            case "delete" -> message.delete();
            case "archive" -> message.archive();
            case "release" -> message.release(with.span("delay", null));
            case "dead_letter" -> message.deadLetter(with.text("reason", ""));
            case "extend" -> message.extend(with.span("visibility_timeout", Duration.ZERO));
            default -> throw new Failure("unknown action " + action);
        };
    }

    private Object transact(Arguments with) {
        List<String> words = new ArrayList<>();
        TransactResult came = client.transact(transaction -> {
            for (Object operation : with.list("operations")) {
                Map.Entry<String, Object> only =
                        Values.map(operation).entrySet().iterator().next();
                words.add(only.getKey());
                Arguments given = new Arguments(Values.map(only.getValue()));
                add(transaction, only.getKey(), given);
                given.checkAllUsed();
            }
            return with.has("deduplication_id")
                    ? transaction.deduplicationId(with.text("deduplication_id"))
                    : transaction;
        });
        List<Object> results = new ArrayList<>();
        for (int i = 0; i < words.size(); i++) {
            TransactResult.Operation done = came.results().get(i);
            results.add(Map.of(
                    words.get(i),
                    switch (words.get(i)) {
                        case "send" -> done.sent().get(0);
                        case "send_batch" -> done.sent();
                        case "send_topic" -> done.topic();
                        default -> outcomes(done.settled());
                    }));
        }
        return Map.of("results", results, "deduplicated", came.deduplicated());
    }

    private static void add(Transaction transaction, String word, Arguments with) {
        switch (word) {
            case "send" -> transaction.send(with.text("queue"), message(with));
            case "send_batch" -> transaction.sendBatch(with.text("queue"), messages(with));
            case "send_topic" ->
                transaction.sendTopic(with.text("routing_key"), message(with), with.flag("require_match"));
            case "delete" -> transaction.delete(with.text("queue"), items(with));
            case "archive" -> transaction.archive(with.text("queue"), items(with));
            case "release" -> transaction.release(with.text("queue"), items(with), with.span("delay", null));
            case "dead_letter" -> transaction.deadLetter(with.text("queue"), items(with), with.text("reason", ""));
            case "set_visibility_timeout" -> {
                if (with.has("visible_at")) {
                    transaction.setVisibilityTimeout(with.text("queue"), items(with), with.moment("visible_at"));
                } else {
                    transaction.setVisibilityTimeout(
                            with.text("queue"), items(with), with.span("visibility_timeout", null));
                }
            }
            default -> throw new Failure("unknown operation " + word);
        }
    }

    private static ArchiveFilter filter(Arguments with) {
        ArchiveFilter filter = ArchiveFilter.all();
        if (with.has("msg_ids")) {
            filter = filter.msgIds(with.list("msg_ids").stream()
                    .map(id -> ((Number) id).longValue())
                    .toList());
        }
        if (with.has("archived_after")) {
            filter = filter.archivedAfter(with.moment("archived_after"));
        }
        return with.has("archived_before") ? filter.archivedBefore(with.moment("archived_before")) : filter;
    }

    private static Map<String, Object> moved(String count, MoveResult result) {
        return Map.of(count, result.count(), "more", result.more());
    }

    private static List<Outcome> outcomes(List<ItemResult> results) {
        return results.stream().map(ItemResult::outcome).toList();
    }

    /** Sets what is left of the arguments in a request of the contract. */
    private static <B extends com.google.protobuf.Message.Builder> java.util.function.UnaryOperator<B> narrow(
            Arguments with) {
        Map<String, Object> rest = with.rest();
        return builder -> Values.fill(builder, rest);
    }

    static Object nothing(Runnable work) {
        work.run();
        return null;
    }
}

package io.github.pgmqgrpc;

import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getConvertArchivePartitionedMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getCreateFifoIndexMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getDisableNotificationsMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getEnableNotificationsMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getInstallPgmqMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getListClientsMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getListNotificationsMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getUpdateNotificationsMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getGetServerInfoMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getListQueueMetricsMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getListQueuesMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getTransactMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getValidateNameMethod;
import static io.github.pgmqgrpc.v1.TopicServiceGrpc.getBindTopicMethod;
import static io.github.pgmqgrpc.v1.TopicServiceGrpc.getListTopicBindingsMethod;
import static io.github.pgmqgrpc.v1.TopicServiceGrpc.getSendTopicBatchMethod;
import static io.github.pgmqgrpc.v1.TopicServiceGrpc.getSendTopicMethod;
import static io.github.pgmqgrpc.v1.TopicServiceGrpc.getTestRoutingMethod;
import static io.github.pgmqgrpc.v1.TopicServiceGrpc.getUnbindTopicMethod;

import io.github.pgmqgrpc.v1.BindTopicRequest;
import io.github.pgmqgrpc.v1.ConvertArchivePartitionedRequest;
import io.github.pgmqgrpc.v1.CreateFifoIndexRequest;
import io.github.pgmqgrpc.v1.DisableNotificationsRequest;
import io.github.pgmqgrpc.v1.EnableNotificationsRequest;
import io.github.pgmqgrpc.v1.GetServerInfoRequest;
import io.github.pgmqgrpc.v1.InstallPgmqRequest;
import io.github.pgmqgrpc.v1.InstallPgmqResponse;
import io.github.pgmqgrpc.v1.ListClientsRequest;
import io.github.pgmqgrpc.v1.ListNotificationsRequest;
import io.github.pgmqgrpc.v1.ListQueueMetricsRequest;
import io.github.pgmqgrpc.v1.ListQueuesRequest;
import io.github.pgmqgrpc.v1.ListTopicBindingsRequest;
import io.github.pgmqgrpc.v1.Partitioning;
import io.github.pgmqgrpc.v1.SendTopicBatchRequest;
import io.github.pgmqgrpc.v1.SendTopicRequest;
import io.github.pgmqgrpc.v1.TestRoutingRequest;
import io.github.pgmqgrpc.v1.TransactRequest;
import io.github.pgmqgrpc.v1.UnbindTopicRequest;
import io.github.pgmqgrpc.v1.UpdateNotificationsRequest;
import io.github.pgmqgrpc.v1.ValidateNameRequest;
import io.grpc.Channel;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Function;
import java.util.function.UnaryOperator;

/**
 * A connection to pgmq-grpc: one server, or a name behind which there are several. Safe for use by many threads; make one
 * for a process, and close it at the end.
 *
 * <pre>{@code
 * try (PgmqClient client = PgmqClient.connect("127.0.0.1:50051")) {
 *     Queue orders = client.queue("orders");
 *     orders.create();
 *     orders.send(Map.of("total", 42));
 * }
 * }</pre>
 *
 * <p>All methods throw {@link PgmqException} where a call fails. A failed call is repeated, at most 3 times within its
 * deadline, where that is safe.
 */
public final class PgmqClient implements AutoCloseable {
    private static final Duration LONG = Duration.ofHours(1);

    final Connection connection;
    final Duration deadline;
    private final boolean hasDefaultDeadline;

    PgmqClient(Connection connection, Duration deadline, boolean hasDefaultDeadline) {
        this.connection = connection;
        this.deadline = deadline;
        this.hasDefaultDeadline = hasDefaultDeadline;
    }

    /**
     * Connects to the target of the environment variable {@code PGMQ_GRPC_TARGET}, else to {@code 127.0.0.1:50051}.
     * Nothing is connected before the first call.
     *
     * @return the client
     */
    public static PgmqClient connect() {
        return builder().build();
    }

    /**
     * Connects to a target, in plain text.
     *
     * @param target {@code host:port}, {@code unix:/path} or {@code dns:///name:port}
     * @return the client
     */
    public static PgmqClient connect(String target) {
        return builder().target(target).build();
    }

    /**
     * Connects with settings.
     *
     * @return a builder
     */
    public static ClientBuilder builder() {
        return new ClientBuilder();
    }

    /**
     * The same client with another deadline for unary calls. It shares the connection, which is closed once.
     *
     * @param other the deadline, above 0
     * @return the client
     */
    public PgmqClient withDeadline(Duration other) {
        return new PgmqClient(connection, ClientBuilder.checked(other), false);
    }

    /**
     * The channel, with the metadata and interceptors of this client: for the generated stubs, which have everything that
     * has no word here, such as {@code TransactionServiceGrpc.newStub(client.raw())}.
     *
     * @return the channel
     */
    public Channel raw() {
        return connection.channel;
    }

    /**
     * Closes consumers, which waits for their handlers as {@link Consumer#close} does, then producers, watchers and the
     * connection. From then on all that is asked of this client, its queues, producers and consumers is refused, with the
     * code {@code CANCELLED}, and nothing is sent. Closing again does nothing.
     */
    @Override
    public void close() {
        connection.close();
    }

    /**
     * A queue, which need not exist.
     *
     * @param name the name
     * @return the queue
     */
    public Queue queue(String name) {
        return new Queue(this, name);
    }

    /**
     * Creates a queue, see {@link Queue#create()}.
     *
     * @param queue the name
     * @return the queue as it is, and whether it is new
     */
    public CreateResult createQueue(String queue) {
        return queue(queue).create();
    }

    /**
     * Creates a queue, see {@link Queue#create(UnaryOperator)}.
     *
     * @param queue the name
     * @param options how
     * @return the queue as it is, and whether it is new
     */
    public CreateResult createQueue(String queue, UnaryOperator<CreateOptions> options) {
        return queue(queue).create(options);
    }

    /**
     * Describes a queue.
     *
     * @param queue the name
     * @return the queue as it is
     */
    public QueueInfo getQueue(String queue) {
        return queue(queue).get();
    }

    /**
     * Lists all queues, by name.
     *
     * @return the queues
     */
    public Pages<QueueInfo> listQueues() {
        return listQueues(UnaryOperator.identity());
    }

    /**
     * Lists queues, by name.
     *
     * @param request narrows the contract's request, such as {@code request -> request.setPrefix("eu_")}
     * @return the queues
     */
    public Pages<QueueInfo> listQueues(UnaryOperator<ListQueuesRequest.Builder> request) {
        return pages(
                getListQueuesMethod(),
                token -> request.apply(ListQueuesRequest.newBuilder())
                        .setPageToken(token)
                        .build(),
                reply -> page(reply.getQueuesList(), QueueInfo::of, reply.getNextPageToken()));
    }

    /**
     * Changes a queue's policy, see {@link Queue#update}.
     *
     * @param queue the name
     * @param policy the new values
     * @param clear names of fields to be cleared
     * @return the queue as it is
     */
    public QueueInfo updateQueue(String queue, QueuePolicy policy, String... clear) {
        return queue(queue).update(policy, clear);
    }

    /**
     * Removes a queue for good.
     *
     * @param queue the name
     */
    public void dropQueue(String queue) {
        queue(queue).drop();
    }

    /**
     * Removes all messages of a queue for good.
     *
     * @param queue the name
     * @return how many
     */
    public long purgeQueue(String queue) {
        return queue(queue).purge();
    }

    /**
     * Counts the messages of a queue.
     *
     * @param queue the name
     * @return the counts
     */
    public QueueMetrics getQueueMetrics(String queue) {
        return queue(queue).metrics();
    }

    /**
     * Counts the messages of all queues.
     *
     * @return the counts, by name of the queue
     */
    public Pages<QueueMetrics> listQueueMetrics() {
        return listQueueMetrics(UnaryOperator.identity());
    }

    /**
     * Counts the messages of many queues.
     *
     * @param request narrows the contract's request
     * @return the counts, by name of the queue
     */
    public Pages<QueueMetrics> listQueueMetrics(UnaryOperator<ListQueueMetricsRequest.Builder> request) {
        return pages(
                getListQueueMetricsMethod(),
                token -> request.apply(ListQueueMetricsRequest.newBuilder())
                        .setPageToken(token)
                        .build(),
                reply -> page(reply.getMetricsList(), QueueMetrics::of, reply.getNextPageToken()));
    }

    /**
     * Does several operations in one database transaction: all of them or none.
     *
     * @param operations adds the operations
     * @return what each has done
     */
    public TransactResult transact(UnaryOperator<Transaction> operations) {
        TransactRequest request =
                operations.apply(new Transaction(connection.json)).request.build();
        boolean harmlessTwice = !request.getDeduplicationId().isEmpty();
        return TransactResult.of(call(getTransactMethod(), request, Duration.ZERO, harmlessTwice));
    }

    /**
     * Watches what happens to queues, without reading from them.
     *
     * @param queues 1 to 100 names
     * @return a watcher, to be closed; the server has confirmed it
     */
    public Watcher watch(String... queues) {
        List<String> names = List.of(queues);
        Watcher watcher = connection.open(() -> new Watcher(connection, names));
        try {
            Connection.await(watcher.confirmed.orTimeout(deadline.toNanos(), TimeUnit.NANOSECONDS));
            return watcher;
        } catch (IllegalStateException e) {
            watcher.close();
            if (e.getCause() instanceof TimeoutException) {
                throw PgmqException.local(Status.DEADLINE_EXCEEDED.withDescription("no watch in time"), false);
            }
            throw e;
        }
    }

    /**
     * Sends a message to every queue that is bound to a matching pattern.
     *
     * @param routingKey the routing key, such as {@code logs.db.error}
     * @param message a body, or an {@link OutgoingMessage}
     * @return the copies; none if no queue matches
     */
    public TopicResult sendTopic(String routingKey, Object message) {
        return sendTopic(routingKey, message, false);
    }

    /**
     * Sends a message to every queue that is bound to a matching pattern.
     *
     * @param routingKey the routing key
     * @param message a body, or an {@link OutgoingMessage}
     * @param requireMatch whether it is an error, {@code NO_ROUTE}, if no queue matches
     * @return the copies
     */
    public TopicResult sendTopic(String routingKey, Object message, boolean requireMatch) {
        SendTopicRequest request = Requests.sendTopic(routingKey, wire(message), requireMatch);
        boolean harmlessTwice = !request.getDeduplicationId().isEmpty();
        return TopicResult.of(call(getSendTopicMethod(), request, Duration.ZERO, harmlessTwice));
    }

    /**
     * Sends several messages with one routing key: all copies of all messages, or none.
     *
     * @param routingKey the routing key
     * @param messages 1 to 1,000 bodies, or {@link OutgoingMessage}s
     * @param requireMatch whether it is an error, {@code NO_ROUTE}, if no queue matches
     * @return the copies
     */
    public List<TopicCopy> sendTopicBatch(String routingKey, List<?> messages, boolean requireMatch) {
        SendTopicBatchRequest request = SendTopicBatchRequest.newBuilder()
                .setRoutingKey(routingKey)
                .addAllMessages(Requests.wire(messages, connection.json))
                .setRequireMatch(requireMatch)
                .build();
        boolean harmlessTwice = areKeyed(request.getMessagesList());
        return TopicCopy.of(call(getSendTopicBatchMethod(), request, Duration.ZERO, harmlessTwice)
                .getCopiesList());
    }

    /**
     * Makes a queue receive messages by their routing keys.
     *
     * @param pattern the pattern: {@code *} is one or more characters but a dot, {@code #} is any text
     * @param queue the queue
     * @return whether the binding is new
     */
    public boolean bindTopic(String pattern, String queue) {
        BindTopicRequest request = BindTopicRequest.newBuilder()
                .setPattern(pattern)
                .setQueue(queue)
                .build();
        return call(getBindTopicMethod(), request).getCreated();
    }

    /**
     * Removes a binding.
     *
     * @param pattern the pattern
     * @param queue the queue
     * @return whether it was there
     */
    public boolean unbindTopic(String pattern, String queue) {
        UnbindTopicRequest request = UnbindTopicRequest.newBuilder()
                .setPattern(pattern)
                .setQueue(queue)
                .build();
        return call(getUnbindTopicMethod(), request).getRemoved();
    }

    /**
     * Lists bindings, by pattern and queue.
     *
     * @param request narrows the contract's request, such as {@code request -> request.setQueue("audit")}
     * @return the bindings
     */
    public Pages<TopicBinding> listTopicBindings(UnaryOperator<ListTopicBindingsRequest.Builder> request) {
        return pages(
                getListTopicBindingsMethod(),
                token -> request.apply(ListTopicBindingsRequest.newBuilder())
                        .setPageToken(token)
                        .build(),
                reply -> page(reply.getBindingsList(), TopicBinding::of, reply.getNextPageToken()));
    }

    /**
     * Shows which bindings match a routing key. It sends nothing.
     *
     * @param routingKey the routing key
     * @return the bindings
     */
    public List<TopicBinding> testRouting(String routingKey) {
        TestRoutingRequest request =
                TestRoutingRequest.newBuilder().setRoutingKey(routingKey).build();
        return call(getTestRoutingMethod(), request).getMatchesList().stream()
                .map(TopicBinding::of)
                .toList();
    }

    /**
     * Checks whether a name is well-formed.
     *
     * @param name sets one of {@code queue}, {@code routing_key} and {@code pattern} in the contract's request
     * @throws PgmqException if it is not
     */
    public void validateName(UnaryOperator<ValidateNameRequest.Builder> name) {
        call(
                getValidateNameMethod(),
                name.apply(ValidateNameRequest.newBuilder()).build());
    }

    /**
     * Asks what the server is, and what works there.
     *
     * @return the answer
     */
    public ServerInfo getServerInfo() {
        return ServerInfo.of(call(getGetServerInfoMethod(), GetServerInfoRequest.getDefaultInstance()));
    }

    /**
     * Changes the layout of a queue's table.
     *
     * @param queue the queue
     * @param layout the layout
     * @return the queue as it is
     */
    public QueueInfo setQueueLayout(String queue, QueueLayout layout) {
        return queue(queue).setLayout(layout);
    }

    /**
     * Makes the index that grouped orderings use. It may take up to an hour.
     *
     * @param queue the queue
     */
    public void createFifoIndex(String queue) {
        callLong(
                getCreateFifoIndexMethod(),
                CreateFifoIndexRequest.newBuilder().setQueue(queue).build());
    }

    /** Makes the index that grouped orderings use, for all queues. It may take up to an hour. */
    public void createFifoIndexes() {
        callLong(
                getCreateFifoIndexMethod(),
                CreateFifoIndexRequest.newBuilder().setAllQueues(true).build());
    }

    /**
     * Cuts the archive of a queue into partitions. It may take up to an hour.
     *
     * @param queue the queue
     * @param partitioning how it is cut, as the contract has it
     */
    public void convertArchivePartitioned(String queue, Partitioning partitioning) {
        callLong(
                getConvertArchivePartitionedMethod(),
                ConvertArchivePartitionedRequest.newBuilder()
                        .setQueue(queue)
                        .setPartitioning(partitioning)
                        .build());
    }

    /**
     * Makes the database notify those who listen in plain SQL of messages.
     *
     * @param queue the queue
     * @param throttleInterval the shortest time between two notifications; null for the server's default
     * @return the settings
     */
    public NotificationSettings enableNotifications(String queue, Duration throttleInterval) {
        EnableNotificationsRequest.Builder request =
                EnableNotificationsRequest.newBuilder().setQueue(queue);
        if (throttleInterval != null) {
            request.setThrottleInterval(Convert.duration(throttleInterval));
        }
        return NotificationSettings.of(
                call(getEnableNotificationsMethod(), request.build()).getSettings());
    }

    /**
     * Changes notifications that are enabled.
     *
     * @param queue the queue
     * @param throttleInterval the shortest time between two notifications
     * @return the settings
     */
    public NotificationSettings updateNotifications(String queue, Duration throttleInterval) {
        UpdateNotificationsRequest request = UpdateNotificationsRequest.newBuilder()
                .setQueue(queue)
                .setThrottleInterval(Convert.duration(throttleInterval))
                .build();
        return NotificationSettings.of(
                call(getUpdateNotificationsMethod(), request).getSettings());
    }

    /**
     * Disables notifications.
     *
     * @param queue the queue
     */
    public void disableNotifications(String queue) {
        call(
                getDisableNotificationsMethod(),
                DisableNotificationsRequest.newBuilder().setQueue(queue).build());
    }

    /**
     * Lists the queues whose notifications are enabled.
     *
     * @param request narrows the contract's request
     * @return the settings, by queue
     */
    public Pages<NotificationSettings> listNotifications(UnaryOperator<ListNotificationsRequest.Builder> request) {
        return pages(
                getListNotificationsMethod(),
                token -> request.apply(ListNotificationsRequest.newBuilder())
                        .setPageToken(token)
                        .build(),
                reply -> page(reply.getNotificationsList(), NotificationSettings::of, reply.getNextPageToken()));
    }

    /**
     * Lists who calls, on all replicas.
     *
     * @param request narrows the contract's request
     * @return the callers
     */
    public Pages<ClientInfo> listClients(UnaryOperator<ListClientsRequest.Builder> request) {
        return pages(
                getListClientsMethod(),
                token -> request.apply(ListClientsRequest.newBuilder())
                        .setPageToken(token)
                        .build(),
                reply -> page(reply.getClientsList(), ClientInfo::of, reply.getNextPageToken()));
    }

    /**
     * Installs pgmq in the database, or upgrades it.
     *
     * @return the versions before and after, as the contract has them
     */
    public InstallPgmqResponse installPgmq() {
        return call(getInstallPgmqMethod(), InstallPgmqRequest.getDefaultInstance());
    }

    <Q, R> R call(MethodDescriptor<Q, R> method, Q request) {
        return call(method, request, Duration.ZERO, Connection.HARMLESS_TWICE.contains(method.getBareMethodName()));
    }

    /** Calls with so much more time than usual. */
    <Q, R> R call(MethodDescriptor<Q, R> method, Q request, Duration more, boolean harmlessTwice) {
        return connection.call(method, request, deadline.plus(more), harmlessTwice);
    }

    /** Calls what the server gives an hour, unless the application says otherwise. */
    <Q, R> R callLong(MethodDescriptor<Q, R> method, Q request) {
        return connection.call(method, request, hasDefaultDeadline ? LONG : deadline, false);
    }

    io.github.pgmqgrpc.v1.OutgoingMessage wire(Object message) {
        return OutgoingMessage.from(message).toWire(connection.json);
    }

    static boolean areKeyed(List<io.github.pgmqgrpc.v1.OutgoingMessage> messages) {
        return messages.stream()
                .noneMatch(message -> message.getDeduplicationId().isEmpty());
    }

    private <Q, R, T> Pages<T> pages(
            MethodDescriptor<Q, R> method, Function<String, Q> request, Function<R, Pages.Page<T>> read) {
        return new Pages<>(token -> read.apply(call(method, request.apply(token))));
    }

    private static <W, T> Pages.Page<T> page(List<W> wire, Function<W, T> convert, String nextToken) {
        return new Pages.Page<>(wire.stream().map(convert).toList(), nextToken);
    }
}

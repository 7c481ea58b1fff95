package io.github.pgmqgrpc;

import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getDeleteArchivedMessagesMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getListArchivedMessagesMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getListMessagesMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getRedriveMessagesMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getReplayArchivedMessagesMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getSetQueueLayoutMethod;
import static io.github.pgmqgrpc.v1.AdminServiceGrpc.getUpdateQueueMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getArchiveMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getCreateQueueMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getDeadLetterMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getDeleteMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getDropQueueMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getGetQueueMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getGetQueueMetricsMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getPopMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getPurgeQueueMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getReadBatchMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getReleaseMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getSendBatchMethod;
import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getSetVisibilityTimeoutMethod;

import io.github.pgmqgrpc.v1.ArchiveResponse;
import io.github.pgmqgrpc.v1.ConsumeRequest;
import io.github.pgmqgrpc.v1.CreateQueueResponse;
import io.github.pgmqgrpc.v1.DeadLetterResponse;
import io.github.pgmqgrpc.v1.DeleteArchivedMessagesRequest;
import io.github.pgmqgrpc.v1.DeleteArchivedMessagesResponse;
import io.github.pgmqgrpc.v1.DeleteResponse;
import io.github.pgmqgrpc.v1.DropQueueRequest;
import io.github.pgmqgrpc.v1.GetQueueMetricsRequest;
import io.github.pgmqgrpc.v1.GetQueueRequest;
import io.github.pgmqgrpc.v1.ListArchivedMessagesRequest;
import io.github.pgmqgrpc.v1.ListArchivedMessagesResponse;
import io.github.pgmqgrpc.v1.ListMessagesRequest;
import io.github.pgmqgrpc.v1.ListMessagesResponse;
import io.github.pgmqgrpc.v1.PopRequest;
import io.github.pgmqgrpc.v1.PurgeQueueRequest;
import io.github.pgmqgrpc.v1.RedriveMessagesRequest;
import io.github.pgmqgrpc.v1.RedriveMessagesResponse;
import io.github.pgmqgrpc.v1.ReleaseResponse;
import io.github.pgmqgrpc.v1.ReplayArchivedMessagesRequest;
import io.github.pgmqgrpc.v1.ReplayArchivedMessagesResponse;
import io.github.pgmqgrpc.v1.SendBatchRequest;
import io.github.pgmqgrpc.v1.SetQueueLayoutRequest;
import io.github.pgmqgrpc.v1.SetVisibilityTimeoutRequest;
import io.github.pgmqgrpc.v1.SetVisibilityTimeoutResponse;
import io.github.pgmqgrpc.v1.Settle;
import io.github.pgmqgrpc.v1.UpdateQueueRequest;
import io.grpc.MethodDescriptor;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Objects;
import java.util.function.Function;
import java.util.function.UnaryOperator;

/** A queue by its name: {@code client.queue("orders")}. It asks nobody until a method is called. */
public final class Queue {
    private final PgmqClient client;
    private final String name;

    Queue(PgmqClient client, String name) {
        this.client = client;
        this.name = name;
    }

    /**
     * The name.
     *
     * @return the name
     */
    public String name() {
        return name;
    }

    PgmqClient client() {
        return client;
    }

    /**
     * Creates the queue; one that is there already is left as it is.
     *
     * @return the queue as it is, and whether it is new
     */
    public CreateResult create() {
        return create(UnaryOperator.identity());
    }

    /**
     * Creates the queue; one that is there already and differs is an error.
     *
     * @param options how
     * @return the queue as it is, and whether it is new
     */
    public CreateResult create(UnaryOperator<CreateOptions> options) {
        CreateOptions chosen = options.apply(new CreateOptions(name));
        CreateQueueResponse response = client.call(getCreateQueueMethod(), chosen.request.build());
        return new CreateResult(QueueInfo.of(response.getQueue()), response.getCreated());
    }

    /**
     * Describes the queue.
     *
     * @return the queue as it is
     */
    public QueueInfo get() {
        GetQueueRequest request = GetQueueRequest.newBuilder().setQueue(name).build();
        return QueueInfo.of(client.call(getGetQueueMethod(), request).getQueue());
    }

    /**
     * Changes the queue's policy: the fields that are set in it, and those that are to be cleared.
     *
     * @param policy the new values
     * @param clear names of fields as the contract has them, such as {@code default_delay}
     * @return the queue as it is
     */
    public QueueInfo update(QueuePolicy policy, String... clear) {
        UpdateQueueRequest.Builder request =
                UpdateQueueRequest.newBuilder().setQueue(name).setPolicy(policy.toWire());
        if (clear.length > 0) {
            request.getUpdateMaskBuilder().addAllPaths(policy.fields()).addAllPaths(List.of(clear));
        }
        return QueueInfo.of(client.call(getUpdateQueueMethod(), request.build()).getQueue());
    }

    /** Removes the queue for good, with its messages and its archive. */
    public void drop() {
        client.call(
                getDropQueueMethod(),
                DropQueueRequest.newBuilder().setQueue(name).build());
    }

    /**
     * Removes all messages of the queue for good.
     *
     * @return how many
     */
    public long purge() {
        PurgeQueueRequest request =
                PurgeQueueRequest.newBuilder().setQueue(name).build();
        return client.call(getPurgeQueueMethod(), request).getPurgedCount();
    }

    /**
     * Counts the queue's messages.
     *
     * @return the counts
     */
    public QueueMetrics metrics() {
        return metrics(false);
    }

    /**
     * Counts the queue's messages.
     *
     * @param includeArchive whether the archive is counted too, which can be slow
     * @return the counts
     */
    public QueueMetrics metrics(boolean includeArchive) {
        GetQueueMetricsRequest request = GetQueueMetricsRequest.newBuilder()
                .setQueue(name)
                .setIncludeArchive(includeArchive)
                .build();
        return QueueMetrics.of(client.call(getGetQueueMetricsMethod(), request).getMetrics());
    }

    /**
     * Changes the layout of the queue's table. It may take up to an hour.
     *
     * @param layout the layout
     * @return the queue as it is
     */
    public QueueInfo setLayout(QueueLayout layout) {
        SetQueueLayoutRequest request = SetQueueLayoutRequest.newBuilder()
                .setQueue(name)
                .setLayout(layout.toWire())
                .build();
        return QueueInfo.of(client.callLong(getSetQueueLayoutMethod(), request).getQueue());
    }

    /**
     * Sends a message. Sends that run at the same time, in several threads of a client, share a stream, which is the
     * fast way; one that is alone is a call of its own, which is faster then. Nothing else differs.
     *
     * @param message a body, as anything that the codec can write; or an {@link OutgoingMessage}
     * @return its id
     */
    public SendResult send(Object message) {
        return client.connection.sends.send(this, client.wire(message));
    }

    /**
     * Sends several messages in one transaction: all of them, in order, or none.
     *
     * @param messages 1 to 1,000 bodies, or {@link OutgoingMessage}s
     * @return their ids, in order
     */
    public List<SendResult> sendBatch(List<?> messages) {
        SendBatchRequest request = Requests.sendBatch(name, Requests.wire(messages, client.connection.json));
        boolean harmlessTwice = PgmqClient.areKeyed(request.getMessagesList());
        return client.call(getSendBatchMethod(), request, Duration.ZERO, harmlessTwice).getResultsList().stream()
                .map(result -> new SendResult(result.getMsgId(), result.getDeduplicated()))
                .toList();
    }

    /**
     * Sends without waiting for each message, over a stream of its own.
     *
     * @return a producer, to be closed
     */
    public Producer producer() {
        return producer(UnaryOperator.identity());
    }

    /**
     * Sends without waiting for each message, over a stream of its own.
     *
     * @param options its settings
     * @return a producer, to be closed
     */
    public Producer producer(UnaryOperator<ProducerOptions> options) {
        ProducerOptions chosen = options.apply(new ProducerOptions());
        return client.connection.open(() -> new Producer(this, chosen, false));
    }

    /**
     * Reads one message, if there is one.
     *
     * @return the message, or none
     */
    public List<Message> read() {
        return read(UnaryOperator.identity());
    }

    /**
     * Reads messages, which are then invisible to others for a while.
     *
     * @param options how many, and how
     * @return the messages, or none
     */
    public List<Message> read(UnaryOperator<ReadOptions> options) {
        ReadOptions chosen = options.apply(new ReadOptions(name, client.connection.json));
        Duration wait = Convert.duration(chosen.request.getWait());
        return messages(client.call(getReadBatchMethod(), chosen.request.build(), wait, false)
                .getMessagesList());
    }

    /**
     * Reads and deletes one message in one step: at most once.
     *
     * @return the message, or none
     */
    public List<Message> pop() {
        return pop(1);
    }

    /**
     * Reads and deletes messages in one step: at most once.
     *
     * @param maxMessages 1 to 1,000
     * @return the messages, or none
     */
    public List<Message> pop(int maxMessages) {
        PopRequest request = PopRequest.newBuilder()
                .setQueue(name)
                .setMaxMessages(maxMessages)
                .build();
        return messages(client.call(getPopMethod(), request).getMessagesList());
    }

    /**
     * Takes messages as they become visible.
     *
     * @return a consumer, to be closed
     */
    public Consumer consume() {
        return consume(UnaryOperator.identity());
    }

    /**
     * Takes messages as they become visible.
     *
     * @param options how
     * @return a consumer, to be closed
     */
    public Consumer consume(UnaryOperator<ConsumeOptions> options) {
        return consumer(options, null);
    }

    /**
     * Handles messages as they become visible, one after the other, in threads of the client.
     *
     * @param handler what is done with each
     * @return a consumer, to be closed; {@link Consumer#join} waits until it ends
     */
    public Consumer handle(MessageHandler handler) {
        return handle(UnaryOperator.identity(), handler);
    }

    /**
     * Handles messages as they become visible, in threads of the client.
     *
     * @param options how, and how many at once
     * @param handler what is done with each
     * @return a consumer, to be closed; {@link Consumer#join} waits until it ends
     */
    public Consumer handle(UnaryOperator<ConsumeOptions> options, MessageHandler handler) {
        return consumer(options, Objects.requireNonNull(handler, "handler"));
    }

    private Consumer consumer(UnaryOperator<ConsumeOptions> options, MessageHandler handler) {
        ConsumeOptions chosen = options.apply(new ConsumeOptions(name, client.connection.json));
        return client.connection.open(() -> new Consumer(this, chosen, handler));
    }

    /**
     * Watches what happens to the queue, without reading from it.
     *
     * @return a watcher, to be closed; the server has confirmed it
     */
    public Watcher watch() {
        return client.watch(name);
    }

    /**
     * Removes messages for good.
     *
     * @param items which
     * @return what was done to each
     */
    public List<ItemResult> delete(Items items) {
        return settle(getDeleteMethod(), Requests.delete(name, items), DeleteResponse::getResultsList, items);
    }

    /**
     * Moves messages to the archive.
     *
     * @param items which
     * @return what was done to each
     */
    public List<ItemResult> archive(Items items) {
        return settle(getArchiveMethod(), Requests.archive(name, items), ArchiveResponse::getResultsList, items);
    }

    /**
     * Gives messages back.
     *
     * @param items which, by receipts
     * @param delay how long they stay invisible, 0 to 12 hours; null for what the queue's policy says
     * @return what was done to each
     */
    public List<ItemResult> release(Items items, Duration delay) {
        return settle(getReleaseMethod(), Requests.release(name, items, delay), ReleaseResponse::getResultsList, items);
    }

    /**
     * Moves messages to the queue's dead-letter queue.
     *
     * @param items which, by receipts
     * @param reason why; it may be empty
     * @return what was done to each
     */
    public List<ItemResult> deadLetter(Items items, String reason) {
        return settle(
                getDeadLetterMethod(),
                Requests.deadLetter(name, items, reason),
                DeadLetterResponse::getResultsList,
                items);
    }

    /**
     * Sets for how long messages are invisible.
     *
     * @param items which
     * @param timeout 0 to 12 hours from now
     * @return what was done to each
     */
    public List<ItemResult> setVisibilityTimeout(Items items, Duration timeout) {
        return setVisibilityTimeout(Requests.setVisibilityTimeout(name, items, timeout), items);
    }

    /**
     * Sets when messages become visible.
     *
     * @param items which
     * @param moment at most 12 hours ahead
     * @return what was done to each
     */
    public List<ItemResult> setVisibilityTimeout(Items items, Instant moment) {
        return setVisibilityTimeout(Requests.setVisibilityTimeout(name, items, moment), items);
    }

    /**
     * Browses the queue, without reading from it.
     *
     * @return all messages
     */
    public Pages<Message> listMessages() {
        return listMessages(UnaryOperator.identity());
    }

    /**
     * Browses the queue, without reading from it.
     *
     * @param request narrows the contract's request, such as {@code request -> request.setPageSize(10)}
     * @return the messages
     */
    public Pages<Message> listMessages(UnaryOperator<ListMessagesRequest.Builder> request) {
        return new Pages<>(token -> {
            ListMessagesRequest.Builder page = request.apply(ListMessagesRequest.newBuilder());
            ListMessagesResponse response = client.call(
                    getListMessagesMethod(),
                    page.setQueue(name).setPageToken(token).build());
            return new Pages.Page<>(messages(response.getMessagesList()), response.getNextPageToken());
        });
    }

    /**
     * Browses the queue's archive.
     *
     * @param filter which messages
     * @return the messages
     */
    public Pages<ArchivedMessage> listArchivedMessages(ArchiveFilter filter) {
        return listArchivedMessages(filter, 0);
    }

    /**
     * Browses the queue's archive.
     *
     * @param filter which messages
     * @param pageSize how many are asked for at once; 0 for the server's default
     * @return the messages
     */
    public Pages<ArchivedMessage> listArchivedMessages(ArchiveFilter filter, int pageSize) {
        return new Pages<>(token -> {
            ListArchivedMessagesRequest page = ListArchivedMessagesRequest.newBuilder()
                    .setQueue(name)
                    .setFilter(filter.toWire())
                    .setPageSize(pageSize)
                    .setPageToken(token)
                    .build();
            ListArchivedMessagesResponse response = client.call(getListArchivedMessagesMethod(), page);
            List<ArchivedMessage> archived = response.getMessagesList().stream()
                    .map(message -> new ArchivedMessage(
                            new Message(this, message.getMessage(), null), Convert.instant(message.getArchivedAt())))
                    .toList();
            return new Pages.Page<>(archived, response.getNextPageToken());
        });
    }

    /**
     * Deletes messages from the archive for good.
     *
     * @param filter which messages
     * @param maxMessages 1 to 1,000,000; 0 means 10,000
     * @return how many, and whether there are more
     */
    public MoveResult deleteArchivedMessages(ArchiveFilter filter, int maxMessages) {
        DeleteArchivedMessagesResponse response = client.call(
                getDeleteArchivedMessagesMethod(),
                DeleteArchivedMessagesRequest.newBuilder()
                        .setQueue(name)
                        .setFilter(filter.toWire())
                        .setMaxMessages(maxMessages)
                        .build());
        return new MoveResult(response.getDeletedCount(), response.getMore());
    }

    /**
     * Moves messages of the archive back into the queue, as new ones.
     *
     * @param filter which messages
     * @return how many, and whether there are more
     */
    public MoveResult replay(ArchiveFilter filter) {
        return replay(filter, "", 0);
    }

    /**
     * Moves messages of the archive into a queue, as new ones.
     *
     * @param filter which messages
     * @param targetQueue the queue that gets them; empty for this one
     * @param maxMessages 1 to 1,000,000; 0 means 10,000
     * @return how many, and whether there are more
     */
    public MoveResult replay(ArchiveFilter filter, String targetQueue, int maxMessages) {
        ReplayArchivedMessagesResponse response = client.call(
                getReplayArchivedMessagesMethod(),
                ReplayArchivedMessagesRequest.newBuilder()
                        .setQueue(name)
                        .setFilter(filter.toWire())
                        .setTargetQueue(targetQueue)
                        .setMaxMessages(maxMessages)
                        .build());
        return new MoveResult(response.getReplayedCount(), response.getMore());
    }

    /**
     * Moves all messages of this dead-letter queue back to where they came from.
     *
     * @return how many, and whether there are more
     */
    public MoveResult redrive() {
        return redrive(UnaryOperator.identity());
    }

    /**
     * Moves messages of this dead-letter queue back to where they came from, or elsewhere.
     *
     * @param request narrows the contract's request, such as {@code request -> request.setTargetQueue("repaired")}
     * @return how many, and whether there are more
     */
    public MoveResult redrive(UnaryOperator<RedriveMessagesRequest.Builder> request) {
        RedriveMessagesResponse response = client.call(
                getRedriveMessagesMethod(),
                request.apply(RedriveMessagesRequest.newBuilder())
                        .setDeadLetterQueue(name)
                        .build());
        return new MoveResult(response.getMovedCount(), response.getMore());
    }

    /**
     * Makes the queue receive messages by their routing keys.
     *
     * @param pattern the pattern, such as {@code logs.*.error}
     * @return whether the binding is new
     */
    public boolean bindTopic(String pattern) {
        return client.bindTopic(pattern, name);
    }

    /**
     * Removes a binding.
     *
     * @param pattern the pattern
     * @return whether it was there
     */
    public boolean unbindTopic(String pattern) {
        return client.unbindTopic(pattern, name);
    }

    /**
     * Does by a unary call what a command of a stream does. None gives back uncounted; the next best is to release at
     * once.
     */
    List<ItemResult> settle(Items items, ConsumeRequest command) {
        if (command.hasExtend()) {
            return setVisibilityTimeout(
                    items, Convert.duration(command.getExtend().getVisibilityTimeout()));
        }
        Settle how = command.getSettle();
        return switch (how.getAction()) {
            case SETTLE_ACTION_DELETE -> delete(items);
            case SETTLE_ACTION_ARCHIVE -> archive(items);
            case SETTLE_ACTION_DEAD_LETTER -> deadLetter(items, how.getReason());
            case SETTLE_ACTION_GIVE_BACK -> release(items, Duration.ZERO);
            default -> release(items, how.hasDelay() ? Convert.duration(how.getDelay()) : null);
        };
    }

    private List<ItemResult> setVisibilityTimeout(SetVisibilityTimeoutRequest request, Items items) {
        return settle(getSetVisibilityTimeoutMethod(), request, SetVisibilityTimeoutResponse::getResultsList, items);
    }

    private <Q, R> List<ItemResult> settle(
            MethodDescriptor<Q, R> method,
            Q request,
            Function<R, List<io.github.pgmqgrpc.v1.ItemResult>> results,
            Items items) {
        try {
            return results.apply(client.call(method, request)).stream()
                    .map(ItemResult::of)
                    .toList();
        } catch (PgmqException e) {
            throw items.count() > 1 ? e.ofSeveral() : e;
        }
    }

    private List<Message> messages(List<io.github.pgmqgrpc.v1.Message> wire) {
        return wire.stream().map(message -> new Message(this, message, null)).toList();
    }

    @Override
    public String toString() {
        return "Queue{" + name + "}";
    }
}

package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.ConsumeRequest;
import io.github.pgmqgrpc.v1.SettleAction;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;

/**
 * A message, as it was when it was read. It knows its queue and its receipt, so it settles itself: {@link #delete}, {@link
 * #archive}, {@link #release} and {@link #deadLetter} end the delivery. Safe for use by many threads.
 */
public final class Message {
    private final Queue queue;
    private final io.github.pgmqgrpc.v1.Message wire;
    /** Whose stream settles this message; null for one that was read otherwise. */
    private final Consumer consumer;

    private volatile boolean settled;
    /** What becomes of the last settle over the consumer. */
    private volatile CompletableFuture<ItemResult> settling = CompletableFuture.completedFuture(null);

    Message(Queue queue, io.github.pgmqgrpc.v1.Message wire, Consumer consumer) {
        this.queue = queue;
        this.wire = wire;
        this.consumer = consumer;
    }

    /**
     * The queue that the message is in.
     *
     * @return the queue
     */
    public Queue queue() {
        return queue;
    }

    /**
     * The id, unique within the queue.
     *
     * @return the id
     */
    public long msgId() {
        return wire.getMsgId();
    }

    /**
     * How often the message was read, this time included.
     *
     * @return the number
     */
    public int readCt() {
        return wire.getReadCt();
    }

    /**
     * When the message was sent, by the database's clock.
     *
     * @return the moment
     */
    public Instant enqueuedAt() {
        return Convert.instant(wire.getEnqueuedAt());
    }

    /**
     * When the message was read, by the database's clock.
     *
     * @return the moment, if it was read at all
     */
    public Optional<Instant> lastReadAt() {
        return wire.hasLastReadAt() ? Optional.of(Convert.instant(wire.getLastReadAt())) : Optional.empty();
    }

    /**
     * When the message becomes visible, as it was decided when it was read.
     *
     * @return the moment
     */
    public Instant vt() {
        return Convert.instant(wire.getVt());
    }

    /**
     * The body, as maps, lists, texts, numbers, booleans or null.
     *
     * @return the value
     * @throws IllegalArgumentException if the codec cannot read it
     */
    public Object message() {
        return decode(wire.getMessage(), Object.class);
    }

    /**
     * The body, as an object of a class.
     *
     * @param <T> the type
     * @param type the class
     * @return the object
     * @throws IllegalArgumentException if the body does not fit
     */
    public <T> T message(Class<T> type) {
        return type.cast(decode(wire.getMessage(), type));
    }

    /**
     * The body as JSON text, as Postgres renders it.
     *
     * @return the text; empty where plain SQL has stored no body
     */
    public String messageText() {
        return wire.getMessage();
    }

    /**
     * The headers.
     *
     * @return the headers, empty where there are none
     * @throws IllegalArgumentException if the codec cannot read them
     */
    @SuppressWarnings("unchecked")
    public Map<String, Object> headers() {
        return wire.getHeaders().isEmpty() ? Map.of() : (Map<String, Object>) decode(wire.getHeaders(), Map.class);
    }

    /**
     * The headers as JSON text.
     *
     * @return the text, empty where there are none
     */
    public String headersText() {
        return wire.getHeaders();
    }

    /**
     * The receipt, which names exactly this delivery.
     *
     * @return the receipt, empty where the message was not read
     */
    public String receipt() {
        return wire.getReceipt();
    }

    /**
     * Removes the message for good.
     *
     * @return what was done
     */
    public Outcome delete() {
        return settle(SettleAction.SETTLE_ACTION_DELETE, null, "");
    }

    /**
     * Moves the message to the queue's archive.
     *
     * @return what was done
     */
    public Outcome archive() {
        return settle(SettleAction.SETTLE_ACTION_ARCHIVE, null, "");
    }

    /**
     * Gives the message back, after the delay that the queue's policy says.
     *
     * @return what was done
     */
    public Outcome release() {
        return release(null);
    }

    /**
     * Gives the message back after a delay.
     *
     * @param delay 0 to 12 hours, or null for what the queue's policy says
     * @return what was done
     */
    public Outcome release(Duration delay) {
        return settle(SettleAction.SETTLE_ACTION_RELEASE, delay, "");
    }

    /**
     * Moves the message to the queue's dead-letter queue.
     *
     * @param reason why, for whoever looks there; it may be empty
     * @return what was done
     */
    public Outcome deadLetter(String reason) {
        return settle(SettleAction.SETTLE_ACTION_DEAD_LETTER, null, reason);
    }

    /**
     * Keeps the message invisible from now on for a span of time. A message of a consumer that is invisible for longer
     * already stays so.
     *
     * @param visibilityTimeout above 0 and at most 12 hours
     * @return what was done
     */
    public Outcome extend(Duration visibilityTimeout) {
        ConsumeRequest how = Settler.extension(visibilityTimeout);
        ItemResult result = consumer == null
                ? queue.settle(Items.of(this), how).get(0)
                : Connection.await(consumer.extend(receipt(), how));
        return result.outcome();
    }

    /**
     * Removes the message for good, without waiting.
     *
     * @return what was done, later
     */
    public CompletableFuture<Outcome> deleteAsync() {
        return settleAsync(SettleAction.SETTLE_ACTION_DELETE, null);
    }

    /**
     * Moves the message to the queue's archive, without waiting.
     *
     * @return what was done, later
     */
    public CompletableFuture<Outcome> archiveAsync() {
        return settleAsync(SettleAction.SETTLE_ACTION_ARCHIVE, null);
    }

    /**
     * Gives the message back after a delay, without waiting.
     *
     * @param delay 0 to 12 hours, or null for what the queue's policy says
     * @return what was done, later
     */
    public CompletableFuture<Outcome> releaseAsync(Duration delay) {
        return settleAsync(SettleAction.SETTLE_ACTION_RELEASE, delay);
    }

    /** Whether a settling method was called and has not failed. */
    boolean isSettled() {
        return settled;
    }

    private Outcome settle(SettleAction action, Duration delay, String reason) {
        ConsumeRequest how = Settler.how(action, delay, reason);
        settled = true;
        try {
            ItemResult result = consumer == null
                    ? queue.settle(Items.of(this), how).get(0)
                    : Connection.await(settleByConsumer(how));
            return result.outcome();
        } catch (RuntimeException e) {
            // It is in hand still: a handler that fails now gives it back.
            settled = false;
            throw e;
        }
    }

    private CompletableFuture<Outcome> settleAsync(SettleAction action, Duration delay) {
        if (consumer == null) {
            return queue.client().connection.later(() -> settle(action, delay, ""));
        }
        ConsumeRequest how = Settler.how(action, delay, "");
        settled = true;
        // What is attached to the result runs elsewhere, so that it does not hold up the stream.
        return settleByConsumer(how)
                .whenComplete((result, failure) -> settled = failure == null)
                .thenApplyAsync(ItemResult::outcome, consumer.connection::elsewhere);
    }

    private CompletableFuture<ItemResult> settleByConsumer(ConsumeRequest how) {
        settling = consumer.settle(receipt(), how);
        return settling;
    }

    /** The last settle, which may be under way. */
    CompletableFuture<ItemResult> settling() {
        return settling;
    }

    private Object decode(String text, Class<?> type) {
        return text.isEmpty() ? null : queue.client().connection.json.decode(text, type);
    }

    @Override
    public String toString() {
        return "Message{queue=" + queue.name() + ", msgId=" + msgId() + ", readCt=" + readCt() + "}";
    }
}

package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.ReadBatchRequest;
import java.time.Duration;

/** How messages are read: {@code orders.read(options -> options.maxMessages(10))}. */
public final class ReadOptions {
    final ReadBatchRequest.Builder request;
    private final JsonCodec json;

    ReadOptions(String queue, JsonCodec json) {
        this.request = ReadBatchRequest.newBuilder().setQueue(queue);
        this.json = json;
    }

    /**
     * How many messages come at most.
     *
     * @param messages 1 to 1,000; 1 by default
     * @return this
     */
    public ReadOptions maxMessages(int messages) {
        request.setMaxMessages(messages);
        return this;
    }

    /**
     * How long the messages stay invisible to others.
     *
     * @param timeout above 0 and at most 12 hours, rounded up to whole seconds; by default what the queue's policy
     *     says, else 30 seconds
     * @return this
     */
    public ReadOptions visibilityTimeout(Duration timeout) {
        request.setVisibilityTimeout(Convert.duration(timeout));
        return this;
    }

    /**
     * How long to wait for a first message. The call's deadline is so much later.
     *
     * @param wait 0 to 50 seconds; by default what the queue's policy says, else none
     * @return this
     */
    public ReadOptions wait(Duration wait) {
        request.setWait(Convert.duration(wait));
        return this;
    }

    /**
     * The order in which messages are chosen.
     *
     * @param ordering by default what the queue's policy says
     * @return this
     */
    public ReadOptions ordering(Ordering ordering) {
        request.setOrdering(ordering.toWire());
        return this;
    }

    /**
     * Reads only messages whose body contains this, as Postgres compares {@code message @> value}.
     *
     * @param value a value, such as {@code Map.of("country", "nl")}
     * @return this
     */
    public ReadOptions conditional(Object value) {
        request.setConditional(json.encode(value));
        return this;
    }
}

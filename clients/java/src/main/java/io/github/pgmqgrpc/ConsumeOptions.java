package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.ConsumeStart;
import java.time.Duration;

/** How messages are consumed: {@code orders.consume(options -> options.maxInFlight(20))}. */
public final class ConsumeOptions {
    private static final Duration LONGEST_DELAY = Duration.ofHours(12);

    final ConsumeStart.Builder start = ConsumeStart.newBuilder().setAutoExtend(true);
    int concurrency = 1;
    boolean archive;
    Duration retryDelay;
    private final JsonCodec json;

    ConsumeOptions(String queue, JsonCodec json) {
        this.json = json;
        start.setQueue(queue);
    }

    /**
     * How many messages are unsettled at most.
     *
     * @param messages 1 to 1,000; 100 by default
     * @return this
     */
    public ConsumeOptions maxInFlight(int messages) {
        start.setMaxInFlight(messages);
        return this;
    }

    /**
     * How long a message stays invisible to others, if it is not extended.
     *
     * @param timeout above 0 and at most 12 hours, rounded up to whole seconds; by default what the queue's policy
     *     says, else 30 seconds
     * @return this
     */
    public ConsumeOptions visibilityTimeout(Duration timeout) {
        start.setVisibilityTimeout(Convert.duration(timeout));
        return this;
    }

    /**
     * The order in which messages come.
     *
     * @param ordering by default what the queue's policy says
     * @return this
     */
    public ConsumeOptions ordering(Ordering ordering) {
        start.setOrdering(ordering.toWire());
        return this;
    }

    /**
     * Takes only messages whose body contains this.
     *
     * @param value a value, such as {@code Map.of("country", "nl")}
     * @return this
     */
    public ConsumeOptions conditional(Object value) {
        start.setConditional(json.encode(value));
        return this;
    }

    /**
     * Whether visibility timeouts are extended while messages are in hand; true by default.
     *
     * @param extend whether they are
     * @return this
     */
    public ConsumeOptions autoExtend(boolean extend) {
        start.setAutoExtend(extend);
        return this;
    }

    /**
     * For how long a message is extended at most.
     *
     * @param longest above 0 and at most 12 hours; 1 hour by default
     * @return this
     */
    public ConsumeOptions maxExtension(Duration longest) {
        start.setMaxExtension(Convert.duration(longest));
        return this;
    }

    /**
     * The longest silence on the stream: after twice as long it counts as broken.
     *
     * @param interval 1 second to 10 minutes; 25 seconds by default
     * @return this
     */
    public ConsumeOptions heartbeatInterval(Duration interval) {
        start.setHeartbeatInterval(Convert.duration(interval));
        return this;
    }

    /**
     * How many handlers run at once.
     *
     * @param handlers at least 1, which is the default
     * @return this
     */
    public ConsumeOptions concurrency(int handlers) {
        if (handlers < 1) {
            throw new IllegalArgumentException("concurrency is at least 1");
        }
        concurrency = handlers;
        return this;
    }

    /**
     * Archives what a handler has done, in place of deleting it.
     *
     * @return this
     */
    public ConsumeOptions archive() {
        archive = true;
        return this;
    }

    /**
     * After what delay a message comes again whose handler has failed.
     *
     * @param delay 0 to 12 hours; by default what the queue's policy says, and where that has no backoff, about a second
     *     after the first failure, twice as long after each further one, and at most a minute
     * @return this
     */
    public ConsumeOptions retryDelay(Duration delay) {
        if (delay != null && (delay.isNegative() || delay.compareTo(LONGEST_DELAY) > 0)) {
            throw new IllegalArgumentException("retryDelay is 0 to 12 hours");
        }
        retryDelay = delay;
        return this;
    }

    Duration longestExtension() {
        return start.hasMaxExtension() ? Convert.duration(start.getMaxExtension()) : Duration.ofHours(1);
    }
}

package io.github.pgmqgrpc;

/** Settings of a producer: {@code orders.producer(options -> options.idempotent())}. */
public final class ProducerOptions {
    private static final int MOST_IN_FLIGHT = 10_000;

    int maxInFlight = 1_000;
    boolean idempotent;

    ProducerOptions() {}

    /**
     * How many messages are unanswered at most; further sends wait.
     *
     * @param messages 1 to 10,000; 1,000 by default
     * @return this
     */
    public ProducerOptions maxInFlight(int messages) {
        if (messages < 1 || messages > MOST_IN_FLIGHT) {
            throw new IllegalArgumentException("maxInFlight is 1 to " + MOST_IN_FLIGHT);
        }
        maxInFlight = messages;
        return this;
    }

    /**
     * Gives each message a deduplication id, if it has none, so that it survives a broken stream and is stored once.
     *
     * @return this
     */
    public ProducerOptions idempotent() {
        idempotent = true;
        return this;
    }
}

package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.DeadLetterPolicy;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.function.Consumer;
import java.util.function.Predicate;

/**
 * What holds in a queue where a call leaves it open. What is not set is left to the server.
 *
 * <pre>{@code
 * orders.create(options -> options.policy(
 *         QueuePolicy.none().deadLetter("failed", 5).retryBackoff(Duration.ofSeconds(1), Duration.ofMinutes(5))));
 * }</pre>
 *
 * <p>Policies do not change: each method with an argument gives another one.
 */
public final class QueuePolicy {
    private static final QueuePolicy NONE = new QueuePolicy(io.github.pgmqgrpc.v1.QueuePolicy.getDefaultInstance());

    private final io.github.pgmqgrpc.v1.QueuePolicy wire;

    private QueuePolicy(io.github.pgmqgrpc.v1.QueuePolicy wire) {
        this.wire = wire;
    }

    static QueuePolicy of(io.github.pgmqgrpc.v1.QueuePolicy wire) {
        return new QueuePolicy(wire);
    }

    /**
     * A policy that sets nothing, to begin with.
     *
     * @return the policy
     */
    public static QueuePolicy none() {
        return NONE;
    }

    /**
     * How long a read hides its messages.
     *
     * @return the span, where it is set
     */
    public Optional<Duration> defaultVisibilityTimeout() {
        return span(wire.hasDefaultVisibilityTimeout(), wire.getDefaultVisibilityTimeout());
    }

    /**
     * Sets how long a read hides its messages.
     *
     * @param timeout above 0 and at most 12 hours
     * @return the policy with it
     */
    public QueuePolicy defaultVisibilityTimeout(Duration timeout) {
        return with(policy -> policy.setDefaultVisibilityTimeout(Convert.duration(timeout)));
    }

    /**
     * How long a message that is sent stays invisible.
     *
     * @return the span, where it is set
     */
    public Optional<Duration> defaultDelay() {
        return span(wire.hasDefaultDelay(), wire.getDefaultDelay());
    }

    /**
     * Sets how long a message that is sent stays invisible.
     *
     * @param delay 0 to 365 days
     * @return the policy with it
     */
    public QueuePolicy defaultDelay(Duration delay) {
        return with(policy -> policy.setDefaultDelay(Convert.duration(delay)));
    }

    /**
     * How long a read waits for a message.
     *
     * @return the span, where it is set
     */
    public Optional<Duration> defaultWait() {
        return span(wire.hasDefaultWait(), wire.getDefaultWait());
    }

    /**
     * Sets how long a read waits for a message.
     *
     * @param wait 0 to 50 seconds
     * @return the policy with it
     */
    public QueuePolicy defaultWait(Duration wait) {
        return with(policy -> policy.setDefaultWait(Convert.duration(wait)));
    }

    /**
     * The most bytes of a body.
     *
     * @return the number, where it is set
     */
    public OptionalInt maxMessageBytes() {
        return wire.hasMaxMessageBytes() ? OptionalInt.of(wire.getMaxMessageBytes()) : OptionalInt.empty();
    }

    /**
     * Sets the most bytes of a body.
     *
     * @param bytes 1 to 3,145,728
     * @return the policy with it
     */
    public QueuePolicy maxMessageBytes(int bytes) {
        return with(policy -> policy.setMaxMessageBytes(bytes));
    }

    /**
     * Where messages go that are handed over again and again.
     *
     * @return the queue and the number, where they are set
     */
    public Optional<DeadLetter> deadLetter() {
        return Optional.of(wire.getDeadLetter())
                .filter(set(wire.hasDeadLetter()))
                .map(policy -> new DeadLetter(policy.getQueue(), policy.getMaxReceives()));
    }

    /**
     * Sets where messages go that are handed over again and again.
     *
     * @param queue the dead-letter queue, which has to exist
     * @param maxReceives how often a message is handed over at most: 1 to 1,000
     * @return the policy with it
     */
    public QueuePolicy deadLetter(String queue, int maxReceives) {
        return with(policy -> policy.setDeadLetter(
                DeadLetterPolicy.newBuilder().setQueue(queue).setMaxReceives(maxReceives)));
    }

    /**
     * How long a released message is hidden.
     *
     * @return the backoff, where it is set
     */
    public Optional<RetryBackoff> retryBackoff() {
        return Optional.of(wire.getRetryBackoff())
                .filter(set(wire.hasRetryBackoff()))
                .map(policy -> new RetryBackoff(
                        Convert.duration(policy.getMinimum()),
                        Convert.duration(policy.getMaximum()),
                        policy.getMultiplier(),
                        policy.getJitter()));
    }

    /**
     * Sets how long a released message is hidden: twice as long each time.
     *
     * @param minimum the first delay, above 0 and at most 12 hours
     * @param maximum the longest delay, at most 12 hours
     * @return the policy with it
     */
    public QueuePolicy retryBackoff(Duration minimum, Duration maximum) {
        return retryBackoff(new RetryBackoff(minimum, maximum, 0, 0));
    }

    /**
     * Sets how long a released message is hidden.
     *
     * @param backoff the backoff
     * @return the policy with it
     */
    public QueuePolicy retryBackoff(RetryBackoff backoff) {
        return with(policy -> policy.setRetryBackoff(io.github.pgmqgrpc.v1.RetryBackoff.newBuilder()
                .setMinimum(Convert.duration(backoff.minimum))
                .setMaximum(Convert.duration(backoff.maximum))
                .setMultiplier(backoff.multiplier)
                .setJitter(backoff.jitter)));
    }

    /**
     * How long a deduplication id is remembered.
     *
     * @return the span, where it is set
     */
    public Optional<Duration> deduplicationWindow() {
        return span(wire.hasDeduplicationWindow(), wire.getDeduplicationWindow());
    }

    /**
     * Sets how long a deduplication id is remembered.
     *
     * @param window 100 milliseconds to 168 hours
     * @return the policy with it
     */
    public QueuePolicy deduplicationWindow(Duration window) {
        return with(policy -> policy.setDeduplicationWindow(Convert.duration(window)));
    }

    /**
     * In which order a read takes messages.
     *
     * @return the ordering, where it is set
     */
    public Optional<Ordering> defaultOrdering() {
        return Optional.of(Convert.word(Ordering.class, "ORDERING_", wire.getDefaultOrdering()))
                .filter(ordering -> ordering != Ordering.UNSPECIFIED);
    }

    /**
     * Sets in which order a read takes messages.
     *
     * @param ordering the ordering
     * @return the policy with it
     */
    public QueuePolicy defaultOrdering(Ordering ordering) {
        return with(policy -> policy.setDefaultOrdering(ordering.toWire()));
    }

    /**
     * How long an archived message is kept.
     *
     * @return the span, where it is set
     */
    public Optional<Duration> archiveRetention() {
        return span(wire.hasArchiveRetention(), wire.getArchiveRetention());
    }

    /**
     * Sets how long an archived message is kept.
     *
     * @param retention 1 second to 3,650 days
     * @return the policy with it
     */
    public QueuePolicy archiveRetention(Duration retention) {
        return with(policy -> policy.setArchiveRetention(Convert.duration(retention)));
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof QueuePolicy policy && policy.wire.equals(wire);
    }

    @Override
    public int hashCode() {
        return wire.hashCode();
    }

    @Override
    public String toString() {
        return "QueuePolicy{" + wire + "}";
    }

    io.github.pgmqgrpc.v1.QueuePolicy toWire() {
        return wire;
    }

    /** The names of the fields that are set, as the contract has them. */
    List<String> fields() {
        return wire.getAllFields().keySet().stream()
                .map(field -> field.getName())
                .toList();
    }

    private QueuePolicy with(Consumer<io.github.pgmqgrpc.v1.QueuePolicy.Builder> change) {
        io.github.pgmqgrpc.v1.QueuePolicy.Builder changed = wire.toBuilder();
        change.accept(changed);
        return new QueuePolicy(changed.build());
    }

    private static <T> Predicate<T> set(boolean isSet) {
        return value -> isSet;
    }

    private static Optional<Duration> span(boolean isSet, com.google.protobuf.Duration duration) {
        return Optional.of(duration).filter(set(isSet)).map(Convert::duration);
    }

    /**
     * Where messages go that are handed over again and again.
     *
     * @param queue the dead-letter queue
     * @param maxReceives how often a message is handed over at most
     */
    public record DeadLetter(String queue, int maxReceives) {}

    /**
     * How long a released message is hidden, by how often it was read.
     *
     * @param minimum the first delay
     * @param maximum the longest delay
     * @param multiplier by how much a delay is longer than the one before, 1 to 100; 0 means 2
     * @param jitter the share of the delay that is drawn at random, 0 to 1
     */
    public record RetryBackoff(Duration minimum, Duration maximum, double multiplier, double jitter) {}
}

package io.github.pgmqgrpc;

import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import java.util.UUID;

/**
 * A message to be sent, with all that may belong to it.
 *
 * <pre>{@code
 * orders.send(OutgoingMessage.of(order).headers(Map.of("trace", trace)).delay(Duration.ofMinutes(5)));
 * }</pre>
 */
public final class OutgoingMessage {
    private static final String BOTH = "a message has a delay, or a moment when it becomes visible, and not both";

    private final Object value;
    private final io.github.pgmqgrpc.v1.OutgoingMessage.Builder wire =
            io.github.pgmqgrpc.v1.OutgoingMessage.newBuilder();
    private final boolean isText;
    private Map<String, ?> headers;

    private OutgoingMessage(Object value, boolean isText) {
        this.value = value;
        this.isText = isText;
    }

    /**
     * A message whose body is a value.
     *
     * @param value anything that the client's {@link JsonCodec} can write
     * @return the message
     */
    public static OutgoingMessage of(Object value) {
        return new OutgoingMessage(value, false);
    }

    /**
     * A message whose body is JSON text already.
     *
     * @param json JSON text
     * @return the message
     */
    public static OutgoingMessage ofText(String json) {
        return new OutgoingMessage(json, true);
    }

    /** What may be given where a message is to be sent: one of this class, or a body. */
    static OutgoingMessage from(Object message) {
        return message instanceof OutgoingMessage outgoing ? outgoing : of(message);
    }

    /**
     * The headers.
     *
     * @param values a JSON object, as a map
     * @return this
     */
    public OutgoingMessage headers(Map<String, ?> values) {
        headers = values;
        return this;
    }

    /**
     * The headers as text.
     *
     * @param json the text of a JSON object
     * @return this
     */
    public OutgoingMessage headersText(String json) {
        wire.setHeaders(Convert.unicode(json));
        return this;
    }

    /**
     * How long the message stays invisible; not together with {@link #visibleAt}.
     *
     * @param delay 0 to 365 days
     * @return this
     */
    public OutgoingMessage delay(Duration delay) {
        if (wire.hasVisibleAt()) {
            throw new IllegalArgumentException(BOTH);
        }
        wire.setDelay(Convert.duration(delay));
        return this;
    }

    /**
     * When the message becomes visible; not together with {@link #delay}.
     *
     * @param moment at most 365 days ahead
     * @return this
     */
    public OutgoingMessage visibleAt(Instant moment) {
        if (wire.hasDelay()) {
            throw new IllegalArgumentException(BOTH);
        }
        wire.setVisibleAt(Convert.timestamp(moment));
        return this;
    }

    /**
     * The group, for the grouped orderings.
     *
     * @param group at most 256 bytes
     * @return this
     */
    public OutgoingMessage group(String group) {
        wire.setGroup(Convert.unicode(group));
        return this;
    }

    /**
     * Names the message: within the queue's window it is stored once, however often it is sent.
     *
     * @param id 1 to 128 bytes
     * @return this
     */
    public OutgoingMessage deduplicationId(String id) {
        wire.setDeduplicationId(Convert.unicode(id));
        return this;
    }

    /**
     * Gives the message a deduplication id of its own, if it has none: failed calls are then repeated without storing
     * it twice.
     *
     * @return this
     */
    public OutgoingMessage idempotent() {
        if (wire.getDeduplicationId().isEmpty()) {
            wire.setDeduplicationId(UUID.randomUUID().toString());
        }
        return this;
    }

    io.github.pgmqgrpc.v1.OutgoingMessage toWire(JsonCodec json) {
        wire.setMessage(Convert.unicode(isText ? (String) value : json.encode(value)));
        if (headers != null) {
            wire.setHeaders(Convert.unicode(json.encode(headers)));
        }
        return wire.build();
    }
}

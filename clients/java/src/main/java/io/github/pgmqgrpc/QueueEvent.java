package io.github.pgmqgrpc;

import java.time.Instant;

/**
 * One thing that happened to one queue.
 *
 * @param queue the queue
 * @param kind what happened
 * @param at when it was noticed, by the database's clock
 */
public record QueueEvent(String queue, Kind kind, Instant at) {
    /** What happened to a queue. */
    public enum Kind {
        /** Something that this client does not know. */
        UNSPECIFIED,
        /** Messages were sent, whether they are visible already or delayed. */
        SENT,
        /** Messages became visible: sent, released, or at the end of a delay or a visibility timeout. */
        VISIBLE
    }

    static QueueEvent of(io.github.pgmqgrpc.v1.QueueEvent event) {
        return new QueueEvent(
                event.getQueue(),
                Convert.word(Kind.class, "QUEUE_EVENT_KIND_", event.getKind()),
                Convert.instant(event.getAt()));
    }
}

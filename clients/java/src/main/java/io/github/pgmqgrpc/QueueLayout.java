package io.github.pgmqgrpc;

/** The way in which the table of a queue is laid out. It changes no answer. */
public enum QueueLayout {
    /** The server's default. */
    UNSPECIFIED,
    /** Laid out for speed. */
    TUNED,
    /** Exactly as pgmq makes it. */
    PGMQ;

    io.github.pgmqgrpc.v1.QueueLayout toWire() {
        return io.github.pgmqgrpc.v1.QueueLayout.valueOf("QUEUE_LAYOUT_" + name());
    }
}

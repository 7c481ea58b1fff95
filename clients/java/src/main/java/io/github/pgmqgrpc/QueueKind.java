package io.github.pgmqgrpc;

/** How the table of a queue is stored. */
public enum QueueKind {
    /** Standard, in a request. */
    UNSPECIFIED,
    /** An ordinary table: nothing is lost in a crash. */
    STANDARD,
    /** Faster to write, and emptied by a crash of Postgres. */
    UNLOGGED,
    /** In partitions, old ones of which are dropped. Needs the extension pg_partman. */
    PARTITIONED;

    io.github.pgmqgrpc.v1.QueueKind toWire() {
        return io.github.pgmqgrpc.v1.QueueKind.valueOf("QUEUE_KIND_" + name());
    }
}

package io.github.pgmqgrpc;

/** The way in which a read chooses among the visible messages. A message's group is its header {@code x-pgmq-group}. */
public enum Ordering {
    /** What the queue's policy says, else unordered. */
    UNSPECIFIED,
    /** Lowest ids first; groups are ignored. The fastest. */
    UNORDERED,
    /** As many as possible of the group with the lowest id, then of the next group. */
    GROUPED,
    /** One of each group in turn, then a second one of each. */
    GROUPED_ROUND_ROBIN,
    /** Only the first message of each group: the order within a group holds. */
    GROUPED_HEAD;

    io.github.pgmqgrpc.v1.Ordering toWire() {
        return io.github.pgmqgrpc.v1.Ordering.valueOf("ORDERING_" + name());
    }
}

package io.github.pgmqgrpc;

import java.time.Instant;
import java.util.List;

/** Which messages of an archive are meant: those that meet all conditions. Each method gives another filter. */
public final class ArchiveFilter {
    private static final ArchiveFilter ALL =
            new ArchiveFilter(io.github.pgmqgrpc.v1.ArchiveFilter.getDefaultInstance());

    private final io.github.pgmqgrpc.v1.ArchiveFilter wire;

    private ArchiveFilter(io.github.pgmqgrpc.v1.ArchiveFilter wire) {
        this.wire = wire;
    }

    /**
     * The whole archive.
     *
     * @return the filter
     */
    public static ArchiveFilter all() {
        return ALL;
    }

    /**
     * Only these ids.
     *
     * @param ids at most 1,000
     * @return the filter
     */
    public ArchiveFilter msgIds(List<Long> ids) {
        return new ArchiveFilter(wire.toBuilder().addAllMsgIds(ids).build());
    }

    /**
     * Only what was archived at a moment or later.
     *
     * @param moment the moment
     * @return the filter
     */
    public ArchiveFilter archivedAfter(Instant moment) {
        return new ArchiveFilter(
                wire.toBuilder().setArchivedAfter(Convert.timestamp(moment)).build());
    }

    /**
     * Only what was archived before a moment.
     *
     * @param moment the moment
     * @return the filter
     */
    public ArchiveFilter archivedBefore(Instant moment) {
        return new ArchiveFilter(
                wire.toBuilder().setArchivedBefore(Convert.timestamp(moment)).build());
    }

    io.github.pgmqgrpc.v1.ArchiveFilter toWire() {
        return wire;
    }
}

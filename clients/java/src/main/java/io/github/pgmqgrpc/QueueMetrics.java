package io.github.pgmqgrpc;

import java.time.Duration;
import java.time.Instant;
import java.util.Optional;
import java.util.OptionalLong;

/**
 * Counts of a queue at one moment.
 *
 * @param queue the queue
 * @param queueLength how many messages are in it, visible or not
 * @param visibleLength how many a read could get now
 * @param inFlightLength how many are invisible and were read before
 * @param delayedLength how many are invisible and were never read
 * @param newestMessageAge since when the newest message is there
 * @param oldestMessageAge since when the oldest message is there
 * @param oldestVisibleMessageAge since when the oldest visible message is there: when it grows, consumers do not keep up
 * @param totalMessages how many were ever sent
 * @param defaultPartitionLength about how many rows lie in default partitions
 * @param archiveLength how many are in the archive, if that was asked for
 * @param scrapedAt when this was counted
 * @param deadLetteredCount how many messages this replica has moved to a dead-letter queue
 * @param redrivenCount how many this replica has redriven into the queue
 * @param replayedCount how many this replica has replayed into the queue
 * @param error why the queue cannot be measured, in a list of metrics
 */
public record QueueMetrics(
        String queue,
        long queueLength,
        long visibleLength,
        long inFlightLength,
        long delayedLength,
        Optional<Duration> newestMessageAge,
        Optional<Duration> oldestMessageAge,
        Optional<Duration> oldestVisibleMessageAge,
        long totalMessages,
        OptionalLong defaultPartitionLength,
        OptionalLong archiveLength,
        Instant scrapedAt,
        long deadLetteredCount,
        long redrivenCount,
        long replayedCount,
        Optional<PgmqException> error) {
    static QueueMetrics of(io.github.pgmqgrpc.v1.QueueMetrics metrics) {
        return new QueueMetrics(
                metrics.getQueue(),
                metrics.getQueueLength(),
                metrics.getVisibleLength(),
                metrics.getInFlightLength(),
                metrics.getDelayedLength(),
                age(metrics.hasNewestMessageAge(), metrics.getNewestMessageAge()),
                age(metrics.hasOldestMessageAge(), metrics.getOldestMessageAge()),
                age(metrics.hasOldestVisibleMessageAge(), metrics.getOldestVisibleMessageAge()),
                metrics.getTotalMessages(),
                number(metrics.hasDefaultPartitionLength(), metrics.getDefaultPartitionLength()),
                number(metrics.hasArchiveLength(), metrics.getArchiveLength()),
                Convert.instant(metrics.getScrapedAt()),
                metrics.getDeadLetteredCount(),
                metrics.getRedrivenCount(),
                metrics.getReplayedCount(),
                metrics.hasError() ? Optional.of(PgmqException.of(metrics.getError())) : Optional.empty());
    }

    private static Optional<Duration> age(boolean isSet, com.google.protobuf.Duration age) {
        return isSet ? Optional.of(Convert.duration(age)) : Optional.empty();
    }

    private static OptionalLong number(boolean isSet, long number) {
        return isSet ? OptionalLong.of(number) : OptionalLong.empty();
    }
}

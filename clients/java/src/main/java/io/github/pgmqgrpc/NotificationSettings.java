package io.github.pgmqgrpc;

import java.time.Duration;
import java.time.Instant;
import java.util.Optional;

/**
 * The insert notifications of a queue, for those who listen in plain SQL.
 *
 * @param queue the queue
 * @param throttleInterval the shortest time between two notifications
 * @param lastNotifiedAt when the last one was sent
 */
public record NotificationSettings(String queue, Duration throttleInterval, Optional<Instant> lastNotifiedAt) {
    static NotificationSettings of(io.github.pgmqgrpc.v1.NotificationSettings settings) {
        return new NotificationSettings(
                settings.getQueue(),
                Convert.duration(settings.getThrottleInterval()),
                settings.hasLastNotifiedAt()
                        ? Optional.of(Convert.instant(settings.getLastNotifiedAt()))
                        : Optional.empty());
    }
}

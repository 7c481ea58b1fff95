package io.github.pgmqgrpc;

import java.time.Instant;

/**
 * A queue, as it is.
 *
 * @param id the id of this incarnation: a queue that is dropped and made anew has another one
 * @param name the name
 * @param kind how its table is stored
 * @param createdAt when it was created
 * @param layout how its table is laid out
 * @param policy what holds in it; without any field where it has none
 */
public record QueueInfo(
        long id, String name, QueueKind kind, Instant createdAt, QueueLayout layout, QueuePolicy policy) {
    static QueueInfo of(io.github.pgmqgrpc.v1.Queue queue) {
        return new QueueInfo(
                queue.getId(),
                queue.getName(),
                Convert.word(QueueKind.class, "QUEUE_KIND_", queue.getKind()),
                Convert.instant(queue.getCreatedAt()),
                Convert.word(QueueLayout.class, "QUEUE_LAYOUT_", queue.getLayout()),
                QueuePolicy.of(queue.getPolicy()));
    }
}

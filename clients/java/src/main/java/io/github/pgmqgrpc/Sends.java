package io.github.pgmqgrpc;

import static io.github.pgmqgrpc.v1.QueueServiceGrpc.getSendMethod;

import io.github.pgmqgrpc.v1.OutgoingMessage;
import io.github.pgmqgrpc.v1.SendResponse;
import io.grpc.Deadline;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * The sends of callers who wait for them. One that is alone is a call of its own, which is faster then; those that run at
 * once share a stream for each queue.
 */
final class Sends {
    /** What is larger would hold up the others, and is more than a frame of several messages takes. */
    private static final int LARGEST_SHARED_BYTES = 1024 * 1024;

    private final Connection connection;
    private final AtomicInteger underWay = new AtomicInteger();
    private final Map<String, Producer> producers = new ConcurrentHashMap<>();
    private boolean closed;

    Sends(Connection connection) {
        this.connection = connection;
    }

    SendResult send(Queue queue, OutgoingMessage message) {
        boolean isKeyed = !message.getDeduplicationId().isEmpty();
        boolean isShared = underWay.getAndIncrement() > 0 && Producer.bytes(message) <= LARGEST_SHARED_BYTES;
        try {
            return connection.repeat(
                    queue.client().deadline,
                    isKeyed,
                    deadline -> isShared ? together(queue, message, deadline) : alone(queue, message, deadline));
        } finally {
            underWay.decrementAndGet();
        }
    }

    private SendResult alone(Queue queue, OutgoingMessage message, Deadline deadline) {
        SendResponse response = connection.once(getSendMethod(), Requests.send(queue.name(), message), deadline);
        return new SendResult(response.getMsgId(), response.getDeduplicated());
    }

    private SendResult together(Queue queue, OutgoingMessage message, Deadline deadline) {
        for (Producer producer = producer(queue); producer != null; producer = producer(queue)) {
            SendResult result = producer.sendAndWait(message, deadline);
            if (result != null) {
                return result;
            }
        }
        return alone(queue, message, deadline);
    }

    /** The queue's producer, or null after the end. */
    private synchronized Producer producer(Queue queue) {
        return closed
                ? null
                : producers.computeIfAbsent(
                        queue.name(), name -> connection.adopt(() -> new Producer(queue, new ProducerOptions(), true)));
    }

    /** A producer has ended: the next send makes another one. */
    void forget(String queue, Producer producer) {
        producers.remove(queue, producer);
    }

    /** No more producers: those that are there are closed with all other streams. */
    synchronized void close() {
        closed = true;
    }
}

package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.TransactOperation;
import io.github.pgmqgrpc.v1.TransactRequest;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.UUID;

/**
 * Operations that are done in one database transaction: all of them or none, see {@link PgmqClient#transact}.
 *
 * <pre>{@code
 * client.transact(transaction -> transaction.delete("orders", Items.of(message)).send("invoices", invoice));
 * }</pre>
 */
public final class Transaction {
    final TransactRequest.Builder request = TransactRequest.newBuilder();
    private final JsonCodec json;

    Transaction(JsonCodec json) {
        this.json = json;
    }

    /**
     * Sends a message.
     *
     * @param queue the queue
     * @param message a body, or an {@link OutgoingMessage}
     * @return this
     */
    public Transaction send(String queue, Object message) {
        io.github.pgmqgrpc.v1.OutgoingMessage wire =
                OutgoingMessage.from(message).toWire(json);
        return add(operation -> operation.setSend(Requests.send(queue, wire)));
    }

    /**
     * Sends several messages.
     *
     * @param queue the queue
     * @param messages bodies, or {@link OutgoingMessage}s
     * @return this
     */
    public Transaction sendBatch(String queue, List<?> messages) {
        return add(operation -> operation.setSendBatch(Requests.sendBatch(queue, Requests.wire(messages, json))));
    }

    /**
     * Sends a message to all queues that are bound to a matching pattern.
     *
     * @param routingKey the routing key
     * @param message a body, or an {@link OutgoingMessage}
     * @param requireMatch whether it is an error if there is no such queue
     * @return this
     */
    public Transaction sendTopic(String routingKey, Object message, boolean requireMatch) {
        io.github.pgmqgrpc.v1.OutgoingMessage wire =
                OutgoingMessage.from(message).toWire(json);
        return add(operation -> operation.setSendTopic(Requests.sendTopic(routingKey, wire, requireMatch)));
    }

    /**
     * Deletes messages.
     *
     * @param queue the queue
     * @param items which
     * @return this
     */
    public Transaction delete(String queue, Items items) {
        return add(operation -> operation.setDelete(Requests.delete(queue, items)));
    }

    /**
     * Archives messages.
     *
     * @param queue the queue
     * @param items which
     * @return this
     */
    public Transaction archive(String queue, Items items) {
        return add(operation -> operation.setArchive(Requests.archive(queue, items)));
    }

    /**
     * Releases messages.
     *
     * @param queue the queue
     * @param items which, by receipts
     * @param delay how long they stay invisible, or null for what the queue's policy says
     * @return this
     */
    public Transaction release(String queue, Items items, Duration delay) {
        return add(operation -> operation.setRelease(Requests.release(queue, items, delay)));
    }

    /**
     * Moves messages to the queue's dead-letter queue.
     *
     * @param queue the queue
     * @param items which, by receipts
     * @param reason why; it may be empty
     * @return this
     */
    public Transaction deadLetter(String queue, Items items, String reason) {
        return add(operation -> operation.setDeadLetter(Requests.deadLetter(queue, items, reason)));
    }

    /**
     * Sets for how long messages are invisible.
     *
     * @param queue the queue
     * @param items which
     * @param timeout 0 to 12 hours from now
     * @return this
     */
    public Transaction setVisibilityTimeout(String queue, Items items, Duration timeout) {
        return add(
                operation -> operation.setSetVisibilityTimeout(Requests.setVisibilityTimeout(queue, items, timeout)));
    }

    /**
     * Sets when messages become visible.
     *
     * @param queue the queue
     * @param items which
     * @param moment at most 12 hours ahead
     * @return this
     */
    public Transaction setVisibilityTimeout(String queue, Items items, Instant moment) {
        return add(operation -> operation.setSetVisibilityTimeout(Requests.setVisibilityTimeout(queue, items, moment)));
    }

    /**
     * Names the transaction: within the server's window it is applied once, however often it is sent.
     *
     * @param id 1 to 128 bytes
     * @return this
     */
    public Transaction deduplicationId(String id) {
        request.setDeduplicationId(id);
        return this;
    }

    /**
     * Gives the transaction a deduplication id of its own, if it has none, so that a failed call can be repeated.
     *
     * @return this
     */
    public Transaction idempotent() {
        return request.getDeduplicationId().isEmpty()
                ? deduplicationId(UUID.randomUUID().toString())
                : this;
    }

    private Transaction add(java.util.function.Consumer<TransactOperation.Builder> operation) {
        operation.accept(request.addOperationsBuilder());
        return this;
    }
}

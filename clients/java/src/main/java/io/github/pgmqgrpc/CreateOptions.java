package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.CreateQueueRequest;
import io.github.pgmqgrpc.v1.Partitioning;

/** How a queue is created: {@code orders.create(options -> options.kind(QueueKind.UNLOGGED))}. */
public final class CreateOptions {
    final CreateQueueRequest.Builder request;

    CreateOptions(String queue) {
        request = CreateQueueRequest.newBuilder().setQueue(queue);
    }

    /**
     * How the table is stored.
     *
     * @param kind standard by default
     * @return this
     */
    public CreateOptions kind(QueueKind kind) {
        request.setKind(kind.toWire());
        return this;
    }

    /**
     * How the table is laid out.
     *
     * @param layout the server's default by default
     * @return this
     */
    public CreateOptions layout(QueueLayout layout) {
        request.setLayout(layout.toWire());
        return this;
    }

    /**
     * What holds in the queue.
     *
     * @param policy the policy; a queue that is there with another one is an error
     * @return this
     */
    public CreateOptions policy(QueuePolicy policy) {
        request.setPolicy(policy.toWire());
        return this;
    }

    /**
     * How a partitioned queue is cut.
     *
     * @param partitioning the contract's own message
     * @return this
     */
    public CreateOptions partitioning(Partitioning partitioning) {
        request.setPartitioning(partitioning);
        return this;
    }

    /**
     * Makes a queue that is there already an error.
     *
     * @return this
     */
    public CreateOptions failIfExists() {
        request.setFailIfExists(true);
        return this;
    }
}

package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.QueueServiceGrpc;
import io.github.pgmqgrpc.v1.WatchRequest;
import io.github.pgmqgrpc.v1.WatchResponse;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;

/**
 * What happens to queues, without reading from them. Events of one queue and kind are gathered for up to a tenth of a
 * second, so an event is a hint to look, and not a count.
 */
public final class Watcher extends LastingStream<WatchRequest, WatchResponse> implements Iterable<QueueEvent> {
    private final List<String> queues;
    private final Inbox<QueueEvent> inbox = new Inbox<>();
    final CompletableFuture<Void> confirmed = new CompletableFuture<>();

    Watcher(Connection connection, List<String> queues) {
        super(connection, QueueServiceGrpc.getWatchMethod());
        this.queues = queues;
        open();
    }

    /**
     * The next event.
     *
     * @param timeout how long to wait for it
     * @return the event, or nothing if none came in time, or if this was closed
     * @throws PgmqException if a queue was dropped, or the server refuses for good
     */
    public Optional<QueueEvent> poll(Duration timeout) {
        return Optional.ofNullable(inbox.take(timeout));
    }

    /**
     * All events until this is closed.
     *
     * @return an iterator; several of them share the events
     */
    @Override
    public Iterator<QueueEvent> iterator() {
        return inbox.iterator();
    }

    /** Ends: loops end too. */
    @Override
    public void close() {
        inbox.end(null);
        finish();
    }

    @Override
    void begin() {
        command(WatchRequest.newBuilder().addAllQueues(queues).build());
        endOfCommands();
    }

    @Override
    void receive(WatchResponse reply) {
        if (reply.hasStarted()) {
            started(reply.getStarted().getHeartbeatInterval());
            confirmed.complete(null);
        }
        inbox.add(reply.getEventsList().stream().map(QueueEvent::of).toList());
        if (reply.hasClosing()) {
            closing(reply.getClosing());
        }
    }

    @Override
    void lost(PgmqException cause) {}

    @Override
    void refused(PgmqException cause) {
        confirmed.completeExceptionally(cause);
        inbox.end(cause);
        finish();
    }

    @Override
    void tick(long now) {}
}

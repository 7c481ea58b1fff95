package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.ProduceFailure;
import io.github.pgmqgrpc.v1.ProduceRequest;
import io.github.pgmqgrpc.v1.ProduceResponse;
import io.github.pgmqgrpc.v1.ProduceStarted;
import io.github.pgmqgrpc.v1.QueueServiceGrpc;
import io.grpc.Status;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;

/**
 * Lets many callers share one stream of sends to a queue: the fast way to send. {@link Queue#producer()} gives one.
 *
 * <p>Each message gets its own answer. Messages of one thread are stored in the order in which they were sent. When the
 * stream breaks, messages with a deduplication id are sent again, and so are those that the server has certainly not
 * taken; others fail with {@link PgmqException#outcomeUnknown()}.
 */
public final class Producer extends LastingStream<ProduceRequest, ProduceResponse> {
    /** So many frames are under way at most; what comes meanwhile goes together. */
    private static final int MOST_FRAMES = 2;

    private final Queue queue;
    private final ProducerOptions options;
    private final Semaphore window;
    private final ArrayDeque<Entry> waiting = new ArrayDeque<>();
    private final Map<Long, List<Entry>> frames = new LinkedHashMap<>();
    private int mostMessages;
    private int mostBytes;
    private long nextSequence;
    private boolean closed;

    Producer(Queue queue, ProducerOptions options) {
        super(queue.client().connection, QueueServiceGrpc.getProduceMethod());
        this.queue = queue;
        this.options = options;
        this.window = new Semaphore(options.maxInFlight);
    }

    /**
     * Sends a message. While {@code maxInFlight} messages are unanswered, it waits.
     *
     * @param message the body, as a value; or an {@link OutgoingMessage} with all that belongs to it
     * @return what became of it; it fails with a {@link PgmqException}
     */
    public CompletableFuture<SendResult> send(Object message) {
        OutgoingMessage outgoing = OutgoingMessage.from(message);
        if (options.idempotent) {
            outgoing.idempotent();
        }
        Entry entry = new Entry(
                outgoing.toWire(connection.json),
                System.nanoTime() + queue.client().deadline.toNanos());
        try {
            window.acquire();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw PgmqException.local(Status.CANCELLED.withDescription("interrupted before sending"), false);
        }
        synchronized (this) {
            if (closed) {
                window.release();
                throw new IllegalStateException("the producer is closed");
            }
            waiting.add(entry);
            open();
            flush();
        }
        return entry.result;
    }

    /** Waits until everything is answered, and ends the stream. */
    @Override
    public void close() {
        synchronized (this) {
            closed = true;
        }
        try {
            // Entries that are not answered in time fail, so that this comes.
            window.acquire(options.maxInFlight);
            window.release(options.maxInFlight);
            leave();
            ended.get(queue.client().deadline.toNanos(), TimeUnit.NANOSECONDS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        } catch (java.util.concurrent.ExecutionException | java.util.concurrent.TimeoutException e) {
            // Nothing is under way any more, so nothing is lost with the stream.
        }
        finish();
    }

    private void flush() {
        while (!waiting.isEmpty() && isStarted() && frames.size() < MOST_FRAMES) {
            List<Entry> frame = nextFrame();
            ProduceRequest.Builder request =
                    ProduceRequest.newBuilder().setQueue(queue.name()).setFirstSequence(nextSequence);
            frame.forEach(entry -> request.addMessages(entry.message));
            frames.put(nextSequence, frame);
            nextSequence += frame.size();
            command(request.build());
        }
    }

    private List<Entry> nextFrame() {
        List<Entry> frame = new ArrayList<>();
        int bytes = 0;
        while (!waiting.isEmpty() && frame.size() < mostMessages) {
            bytes += waiting.peek().bytes();
            if (!frame.isEmpty() && bytes > mostBytes) {
                break;
            }
            frame.add(waiting.poll());
        }
        return frame;
    }

    @Override
    void begin() {}

    @Override
    void receive(ProduceResponse reply) {
        if (reply.hasStarted()) {
            ProduceStarted started = reply.getStarted();
            mostMessages = started.getMaxFrameMessages();
            mostBytes = started.getMaxFrameBytes();
            started(started.getHeartbeatInterval());
        }
        if (reply.hasClosing()) {
            closing(reply.getClosing());
        }
        if (reply.getMsgIdsCount() > 0) {
            List<Entry> frame = frames.remove(reply.getFirstSequence());
            if (frame != null) {
                connection.executor.execute(() -> answer(frame, reply));
            }
        }
        flush();
    }

    /** Runs in a thread of its own: what callers have attached to their results must not hold up the stream. */
    private void answer(List<Entry> frame, ProduceResponse reply) {
        Map<Integer, PgmqException> failures = new LinkedHashMap<>();
        for (ProduceFailure failure : reply.getFailuresList()) {
            failures.put(failure.getIndex(), PgmqException.of(failure.getError()));
        }
        Set<Integer> deduplicated = new HashSet<>(reply.getDeduplicatedList());
        for (int i = 0; i < frame.size(); i++) {
            PgmqException failure = failures.get(i);
            if (failure == null) {
                frame.get(i).result.complete(new SendResult(reply.getMsgIds(i), deduplicated.contains(i)));
            } else {
                frame.get(i).result.completeExceptionally(failure);
            }
        }
        window.release(frame.size());
    }

    @Override
    void lost(PgmqException cause) {
        List<Entry> unanswered = new ArrayList<>();
        frames.values().forEach(unanswered::addAll);
        frames.clear();
        List<Entry> failed = new ArrayList<>();
        for (int i = unanswered.size() - 1; i >= 0; i--) {
            Entry entry = unanswered.get(i);
            if (cause == null || !entry.message.getDeduplicationId().isEmpty()) {
                entry.mayBeStored |= cause != null;
                waiting.addFirst(entry);
            } else {
                failed.add(0, entry);
            }
        }
        if (!failed.isEmpty()) {
            Status status = cause.code().toStatus().withDescription("the stream broke before the answer");
            fail(failed, PgmqException.local(status.withCause(cause), true));
        }
    }

    /** The next send tries again: credentials, for example, may be renewed by then. */
    @Override
    void refused(PgmqException cause) {
        List<Entry> failed = List.copyOf(waiting);
        waiting.clear();
        fail(failed, cause);
    }

    @Override
    void tick(long now) {
        List<Entry> late = new ArrayList<>();
        waiting.removeIf(entry -> entry.isOver(now) && late.add(entry));
        if (!late.isEmpty()) {
            Status status = Status.DEADLINE_EXCEEDED.withDescription("not sent within the client's deadline");
            late.forEach(entry -> fail(List.of(entry), PgmqException.local(status, entry.mayBeStored)));
        }
    }

    private void fail(Collection<Entry> entries, PgmqException failure) {
        connection.executor.execute(() -> {
            entries.forEach(entry -> entry.result.completeExceptionally(failure));
            window.release(entries.size());
        });
    }

    private static final class Entry {
        final io.github.pgmqgrpc.v1.OutgoingMessage message;
        final long deadline;
        final CompletableFuture<SendResult> result = new CompletableFuture<>();
        boolean mayBeStored;

        Entry(io.github.pgmqgrpc.v1.OutgoingMessage message, long deadline) {
            this.message = message;
            this.deadline = deadline;
        }

        int bytes() {
            return message.getMessageBytes().size() + message.getHeadersBytes().size();
        }

        boolean isOver(long now) {
            return now - deadline > 0;
        }
    }
}

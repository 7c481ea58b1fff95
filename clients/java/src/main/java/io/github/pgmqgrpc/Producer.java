package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.CommandError;
import io.github.pgmqgrpc.v1.ErrorReason;
import io.github.pgmqgrpc.v1.ProduceFailure;
import io.github.pgmqgrpc.v1.ProduceRequest;
import io.github.pgmqgrpc.v1.ProduceResponse;
import io.github.pgmqgrpc.v1.ProduceStarted;
import io.github.pgmqgrpc.v1.QueueServiceGrpc;
import io.grpc.Deadline;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.Stream;

/**
 * Lets many callers share one stream of sends to a queue: the fast way to send. {@link Queue#producer()} gives one.
 *
 * <p>Each message gets its own answer. Messages of one thread are stored in the order in which they were sent, but for
 * those that the server refuses for the moment, which are sent again. When the stream breaks, messages with a
 * deduplication id are sent again, and so are those that the server has certainly not taken; others fail with {@link
 * PgmqException#outcomeUnknown()}.
 */
public final class Producer extends LastingStream<ProduceRequest, ProduceResponse> {
    private static final Status LATE = Status.DEADLINE_EXCEEDED.withDescription("no answer to a send in time");
    /** So many frames are under way at most; what comes meanwhile goes together. */
    private static final int MOST_FRAMES = 2;

    /** A request that is larger than 8 MiB would end the stream of all. */
    private static final int LARGEST_BYTES = 8 * 1024 * 1024 - 4096;

    /** After so long without a send, a shared producer ends. */
    private static final Duration LONGEST_REST = Duration.ofSeconds(10);

    private final Queue queue;
    private final ProducerOptions options;
    /** Whether this belongs to the client, which makes another one when this has ended. */
    private final boolean shared;

    private final Semaphore window;
    private final ArrayDeque<Entry> waiting = new ArrayDeque<>();
    private final Map<Long, List<Entry>> frames = new LinkedHashMap<>();
    private int mostMessages;
    private int mostBytes;
    private long nextSequence;
    private long usedAt = System.nanoTime();
    private boolean hasStarted;
    private boolean closed;

    Producer(Queue queue, ProducerOptions options, boolean shared) {
        super(queue.client().connection, QueueServiceGrpc.getProduceMethod());
        this.queue = queue;
        this.options = options;
        this.shared = shared;
        this.window = new Semaphore(options.maxInFlight);
    }

    static int bytes(io.github.pgmqgrpc.v1.OutgoingMessage message) {
        return message.getMessageBytes().size() + message.getHeadersBytes().size();
    }

    /**
     * Sends a message. While {@code maxInFlight} messages are unanswered, it waits.
     *
     * @param message the body, as a value; or an {@link OutgoingMessage} with all that belongs to it
     * @return what became of it; it fails with a {@link PgmqException}
     */
    public CompletableFuture<SendResult> send(Object message) {
        connection.refuseIfClosed();
        io.github.pgmqgrpc.v1.OutgoingMessage wire = queue.client().wire(message);
        if (options.idempotent && wire.getDeduplicationId().isEmpty()) {
            wire = wire.toBuilder()
                    .setDeduplicationId(UUID.randomUUID().toString())
                    .build();
        }
        Entry entry = new Entry(wire, Deadline.after(queue.client().deadline.toNanos(), TimeUnit.NANOSECONDS));
        if (wire.getSerializedSize() > LARGEST_BYTES) {
            entry.result.completeExceptionally(PgmqException.of(CommandError.newBuilder()
                    .setCode(Status.Code.INVALID_ARGUMENT.value())
                    .setReason(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE)
                    .setMessage("the message is larger than a request can be")
                    .build()));
            return entry.result;
        }
        if (!offer(entry)) {
            connection.refuseIfClosed();
            throw new IllegalStateException("the producer is closed");
        }
        return entry.result;
    }

    /** Sends a message, and waits for its id until the deadline. Gives null, and does nothing, if this is closed. */
    SendResult sendAndWait(io.github.pgmqgrpc.v1.OutgoingMessage message, Deadline deadline) {
        Entry entry = new Entry(message, deadline);
        if (!offer(entry)) {
            return null;
        }
        try {
            return entry.result.get(deadline.timeRemaining(TimeUnit.NANOSECONDS), TimeUnit.NANOSECONDS);
        } catch (TimeoutException e) {
            giveUp(entry, LATE);
        } catch (InterruptedException e) {
            giveUp(entry, Status.CANCELLED.withDescription("interrupted"));
            Thread.currentThread().interrupt();
        } catch (ExecutionException e) {
            // Told below.
        }
        try {
            return entry.result.join();
        } catch (CompletionException e) {
            throw ((PgmqException) e.getCause()).told();
        }
    }

    /** Takes a message, unless this is closed. */
    private boolean offer(Entry entry) {
        try {
            if (!window.tryAcquire(entry.deadline.timeRemaining(TimeUnit.NANOSECONDS), TimeUnit.NANOSECONDS)) {
                entry.result.completeExceptionally(PgmqException.local(LATE, false));
                return true;
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            entry.result.completeExceptionally(
                    PgmqException.local(Status.CANCELLED.withDescription("interrupted before sending"), false));
            return true;
        }
        synchronized (this) {
            if (closed) {
                window.release();
                return false;
            }
            usedAt = System.nanoTime();
            waiting.add(entry);
            open();
            flush();
        }
        return true;
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
        } catch (ExecutionException | TimeoutException e) {
            // Nothing is under way any more, so nothing is lost with the stream.
        }
        finish();
    }

    private void flush() {
        while (isStarted() && frames.size() < MOST_FRAMES) {
            List<Entry> frame = nextFrame();
            if (frame.isEmpty()) {
                return;
            }
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
            Entry entry = waiting.peek();
            if (entry.finished || entry.result.isDone()) {
                // Its deadline is over, or the application has cancelled it.
                finish(waiting.poll(), null, null);
                continue;
            }
            bytes += bytes(entry.message);
            if (!frame.isEmpty() && bytes > mostBytes) {
                break;
            }
            entry.isUnderWay = true;
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
            hasStarted = true;
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
                connection.elsewhere(() -> answer(frame, reply));
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
            if (isTriedAgain(frame.get(i), failures.get(i))) {
                continue;
            }
            finish(frame.get(i), new SendResult(reply.getMsgIds(i), deduplicated.contains(i)), failures.get(i));
        }
    }

    /** What the server refuses for the moment is sent again after a pause. A shared producer leaves that to its callers. */
    private synchronized boolean isTriedAgain(Entry entry, PgmqException failure) {
        if (shared || failure == null || entry.finished || ended.isDone()) {
            return false;
        }
        boolean isKeyed = !entry.message.getDeduplicationId().isEmpty();
        Duration pause = Backoff.pause(++entry.failures, failure.retryDelay().orElse(null));
        if (entry.failures > Connection.MOST_REPETITIONS
                || !failure.isRepeatable(isKeyed)
                || entry.deadline.timeRemaining(TimeUnit.NANOSECONDS) <= pause.toNanos()) {
            return false;
        }
        entry.isUnderWay = false;
        entry.mayBeStored |= failure.outcomeUnknown();
        connection.timer.schedule(() -> again(entry), pause.toNanos(), TimeUnit.NANOSECONDS);
        return true;
    }

    private synchronized void again(Entry entry) {
        waiting.add(entry);
        open();
        flush();
    }

    @Override
    void lost(PgmqException cause) {
        List<Entry> unanswered = new ArrayList<>();
        frames.values().forEach(unanswered::addAll);
        frames.clear();
        List<Entry> failed = new ArrayList<>();
        for (int i = unanswered.size() - 1; i >= 0; i--) {
            Entry entry = unanswered.get(i);
            entry.isUnderWay = false;
            entry.mayBeStored |= cause != null;
            if (cause == null || !entry.message.getDeduplicationId().isEmpty()) {
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

    /** What waits has not left. The next send tries again: credentials, for example, may be renewed by then. */
    @Override
    void refused(PgmqException cause) {
        fail(List.copyOf(waiting), cause.with(false));
        waiting.clear();
    }

    /** Where nobody can be reached, who waits is told about as soon as by a call of its own. */
    @Override
    void postponed(int failures, PgmqException cause) {
        if (shared && cause != null && (!hasStarted || failures > Connection.MOST_REPETITIONS)) {
            refused(cause);
        }
    }

    @Override
    void tick(long now) {
        waiting.removeIf(entry -> entry.finished);
        List<Entry> late = Stream.concat(
                        waiting.stream(), frames.values().stream().flatMap(List::stream))
                .filter(entry -> entry.deadline.isExpired())
                .toList();
        if (!late.isEmpty()) {
            connection.elsewhere(() -> late.forEach(entry -> giveUp(entry, LATE)));
        }
        boolean idle = window.availablePermits() == options.maxInFlight && now - usedAt > LONGEST_REST.toNanos();
        if (shared && idle && !closed) {
            closed = true;
            connection.sends.forget(queue.name(), this);
            leave();
        }
    }

    private void fail(List<Entry> entries, PgmqException failure) {
        connection.elsewhere(() -> entries.forEach(entry -> finish(entry, null, failure)));
    }

    /** Ends an entry that has no answer. */
    private void giveUp(Entry entry, Status why) {
        boolean outcomeUnknown;
        synchronized (this) {
            if (!entry.claim()) {
                return;
            }
            outcomeUnknown = entry.isUnderWay;
        }
        tell(entry, null, PgmqException.local(why, outcomeUnknown));
    }

    private void finish(Entry entry, SendResult result, PgmqException failure) {
        synchronized (this) {
            if (!entry.claim()) {
                return;
            }
        }
        tell(entry, result, failure);
    }

    /** Frees the entry's place before anybody is told, who may want it. */
    private void tell(Entry entry, SendResult result, PgmqException failure) {
        window.release();
        if (failure == null) {
            entry.result.complete(result);
        } else {
            entry.result.completeExceptionally(failure.with(entry.mayBeStored || failure.outcomeUnknown()));
        }
    }

    private static final class Entry {
        final io.github.pgmqgrpc.v1.OutgoingMessage message;
        final Deadline deadline;
        final CompletableFuture<SendResult> result = new CompletableFuture<>();
        boolean isUnderWay;
        /** An earlier stream broke while it was under way. */
        boolean mayBeStored;

        boolean finished;
        /** How often the server has refused it for the moment. */
        int failures;

        Entry(io.github.pgmqgrpc.v1.OutgoingMessage message, Deadline deadline) {
            this.message = message;
            this.deadline = deadline;
        }

        /** Whether nobody has ended it yet; then the caller does. */
        boolean claim() {
            boolean isFirst = !finished;
            finished = true;
            return isFirst;
        }
    }
}

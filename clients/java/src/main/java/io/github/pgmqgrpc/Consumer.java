package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.ClientHeartbeat;
import io.github.pgmqgrpc.v1.ConsumeRequest;
import io.github.pgmqgrpc.v1.ConsumeResponse;
import io.github.pgmqgrpc.v1.Extend;
import io.github.pgmqgrpc.v1.QueueServiceGrpc;
import io.github.pgmqgrpc.v1.SettleAction;
import io.github.pgmqgrpc.v1.StreamStarted;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.Stream;

/**
 * Messages of a queue as they become visible, over a stream that survives restarts of servers and broken connections.
 *
 * <p>{@link Queue#consume()} gives one. Take its messages in a loop, or by {@link #poll}, in one thread or in many:
 *
 * <pre>{@code
 * try (Consumer consumer = orders.consume()) {
 *     for (Message message : consumer) {
 *         charge(message.message(Order.class));
 *         message.delete();
 *     }
 * }
 * }</pre>
 *
 * <p>At most {@code maxInFlight} messages are unsettled, and their visibility timeouts are extended while
 * this object lives. A message that is never settled comes back when its visibility timeout ends. An error that no
 * repetition cures, such as a queue that is missing, is thrown to whoever takes.
 */
public final class Consumer extends LastingStream<ConsumeRequest, ConsumeResponse> implements Iterable<Message> {
    private static final Logger LOG = System.getLogger("io.github.pgmqgrpc");
    private static final int MOST_RECEIPTS = 1_000;
    private static final long LOOK_AT_HANDLERS_MILLIS = 50;

    private final Queue queue;
    private final ConsumeOptions options;
    private final Settler settler;
    private final Inbox<Message> inbox = new Inbox<>();
    /** Deliveries that are not settled, as far as this client knows, by their receipts. */
    private final Map<String, Delivery> unsettled = new LinkedHashMap<>();

    /** Messages that wait until fewer are in hand: after a stream broke, the next one begins with an empty window. */
    private final ArrayDeque<Message> held = new ArrayDeque<>();

    /** Messages that no handler has any more, and that the server would keep extending, by their receipts. */
    private final Map<String, Delivery> refused = new LinkedHashMap<>();

    /** Those of them whose release is under way. */
    private final Set<String> releasing = new HashSet<>();

    /** The threads of the handlers. */
    private final Set<Thread> workers = ConcurrentHashMap.newKeySet();

    private final CompletableFuture<Void> handled;
    private boolean stopping;
    private boolean stopped;
    private int maxInFlight = MOST_RECEIPTS;
    private Duration visibilityTimeout = Duration.ofSeconds(30);
    private Duration heartbeatInterval = Duration.ofSeconds(25);
    private long heartbeatAt = System.nanoTime();
    private long extendedAt;
    /** Whether the queue's policy says after what delay a released message comes again. */
    private volatile boolean hasBackoff;

    Consumer(Queue queue, ConsumeOptions options, MessageHandler handler) {
        super(queue.client().connection, QueueServiceGrpc.getConsumeMethod());
        this.queue = queue;
        this.options = options;
        this.settler = new Settler(this, queue);
        open();
        this.handled = handler == null ? CompletableFuture.completedFuture(null) : work(handler);
    }

    /**
     * The next message.
     *
     * @param timeout how long to wait for it
     * @return the message, or nothing if none came in time, or if this consumer was stopped
     * @throws PgmqException if the server refuses for good
     */
    public Optional<Message> poll(Duration timeout) {
        return Optional.ofNullable(inbox.take(timeout));
    }

    /**
     * All messages until this consumer is stopped. Waiting for the next one ends, too, where the thread is interrupted.
     *
     * @return an iterator; several of them share the messages
     */
    @Override
    public Iterator<Message> iterator() {
        return inbox.iterator();
    }

    /**
     * Takes no more messages: loops end, and what was received but not yet taken is visible to others at once. What is
     * in hand can still be settled. It may be called from any thread, such as a shutdown hook, and does not wait.
     */
    @Override
    public synchronized void stop() {
        if (stopping) {
            return;
        }
        stopping = true;
        List<Message> left = new ArrayList<>(inbox.drain());
        left.addAll(held);
        held.clear();
        inbox.end(null);
        giveBack(left);
        if (isStarted()) {
            command(ConsumeRequest.newBuilder()
                    .setStop(io.github.pgmqgrpc.v1.Stop.getDefaultInstance())
                    .build());
        } else {
            stopped = true;
        }
    }

    /**
     * Stops, waits until handlers have finished and what was settled is answered, and ends the stream. Messages that
     * were taken and not settled come back when their visibility timeout ends.
     *
     * <p>It waits for handlers no longer than the client's deadline, and not for one that is in {@link System#exit}: so it
     * may be called in a shutdown hook. In a handler it does not wait, and does its work when the handlers have finished.
     */
    @Override
    public void close() {
        stop();
        if (isRunByThisThread()) {
            handled.whenComplete((nothing, failure) -> connection.elsewhere(this::close));
            return;
        }
        try {
            awaitHandlers();
            awaitAnswers();
            leave();
            ended.get(queue.client().deadline.toNanos(), TimeUnit.NANOSECONDS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        } catch (ExecutionException | TimeoutException e) {
            LOG.log(Level.DEBUG, "the stream has not ended in good order", e);
        }
        finish();
    }

    /**
     * Waits until the handlers have ended: because this consumer was stopped or closed, or because the server refuses
     * for good. Without a handler it returns at once.
     *
     * @throws PgmqException if the server refuses for good
     */
    public void join() {
        Connection.await(handled);
    }

    private void awaitHandlers() throws InterruptedException, ExecutionException {
        long deadline = System.nanoTime() + queue.client().deadline.toNanos();
        while (System.nanoTime() - deadline < 0) {
            try {
                handled.exceptionally(failure -> null).get(LOOK_AT_HANDLERS_MILLIS, TimeUnit.MILLISECONDS);
                return;
            } catch (TimeoutException e) {
                if (workers.stream().allMatch(Consumer::endsTheProcess)) {
                    return;
                }
            }
        }
        LOG.log(Level.DEBUG, "a handler of {0} has not finished", queue.name());
    }

    /** Whether a thread waits in {@link System#exit}, which waits for shutdown hooks, and never returns. */
    private static boolean endsTheProcess(Thread thread) {
        return Stream.of(thread.getStackTrace())
                .anyMatch(frame -> frame.getClassName().equals("java.lang.Runtime")
                        && frame.getMethodName().equals("exit"));
    }

    @Override
    boolean isRunByThisThread() {
        return workers.contains(Thread.currentThread());
    }

    private synchronized void awaitAnswers() throws InterruptedException {
        long deadline = System.nanoTime() + queue.client().deadline.toNanos();
        while (!settler.isIdle() || !stopped && isUsable()) {
            long left = deadline - System.nanoTime();
            if (left <= 0) {
                return;
            }
            TimeUnit.NANOSECONDS.timedWait(this, left);
        }
    }

    CompletableFuture<ItemResult> settle(String receipt, ConsumeRequest how) {
        Delivery delivery;
        synchronized (this) {
            delivery = unsettled.remove(receipt);
            handOut();
        }
        return settler.settle(receipt, how).whenComplete((result, failure) -> {
            if (delivery != null && failure instanceof PgmqException e && !e.outcomeUnknown()) {
                keep(receipt, delivery);
            }
        });
    }

    /** What could certainly not be settled is in hand still. */
    private synchronized void keep(String receipt, Delivery delivery) {
        unsettled.put(receipt, delivery);
    }

    CompletableFuture<ItemResult> extend(String receipt, ConsumeRequest how) {
        return settler.settle(receipt, how);
    }

    private CompletableFuture<Void> work(MessageHandler handler) {
        return CompletableFuture.allOf(
                        Stream.generate(() -> CompletableFuture.runAsync(() -> takeAll(handler), connection.executor))
                                .limit(options.concurrency)
                                .toArray(CompletableFuture[]::new))
                .whenComplete((nothing, failure) -> stop());
    }

    private void takeAll(MessageHandler handler) {
        workers.add(Thread.currentThread());
        try {
            for (Message message : this) {
                handle(message, handler);
                // A handler that leaves its interruption behind does not end the worker.
                Thread.interrupted();
            }
        } finally {
            workers.remove(Thread.currentThread());
        }
    }

    /** Whatever a handler throws gives its message back. */
    private void handle(Message message, MessageHandler handler) {
        try {
            handler.handle(message);
            if (!message.isSettled()) {
                if (options.archive) {
                    message.archiveAsync();
                } else {
                    message.deleteAsync();
                }
            }
        } catch (Throwable e) {
            LOG.log(Level.DEBUG, () -> "the handler of " + queue.name() + " has failed on " + message.msgId(), e);
            if (!message.isSettled()) {
                message.releaseAsync(retryDelay(message));
            }
        }
        message.settling().whenComplete((result, failure) -> {
            if (failure != null) {
                LOG.log(Level.DEBUG, () -> message.msgId() + " of " + queue.name() + " is not settled", failure);
                abandon(message.receipt(), failure);
            }
        });
    }

    /** A message that always fails must not come again and again at once, so there is a delay where nobody gives one. */
    private Duration retryDelay(Message message) {
        return options.retryDelay == null && !hasBackoff ? Backoff.afterFailure(message.readCt()) : options.retryDelay;
    }

    /**
     * Lets a message that could not be settled come back after a visibility timeout. Only a command ends its extension by
     * the server and frees its place, so one is given until it is answered.
     */
    private synchronized void abandon(String receipt, Throwable failure) {
        Delivery delivery = unsettled.remove(receipt);
        refused.put(receipt, delivery == null ? new Delivery(generation(), System.nanoTime()) : delivery);
        handOut();
        releaseAfter(receipt, asked(failure));
    }

    private void releaseAfter(String receipt, Duration pause) {
        if (!releasing.add(receipt)) {
            return;
        }
        if (pause.isZero()) {
            release(receipt);
        } else {
            connection.timer.schedule(() -> release(receipt), pause.toNanos(), TimeUnit.NANOSECONDS);
        }
    }

    private void release(String receipt) {
        settler.settle(receipt, Settler.how(SettleAction.SETTLE_ACTION_RELEASE, visibilityTimeout, ""))
                .whenComplete((result, failure) -> released(receipt, failure));
    }

    private synchronized void released(String receipt, Throwable failure) {
        releasing.remove(receipt);
        if (failure == null) {
            refused.remove(receipt);
        } else if (!asked(failure).isZero() && !ended.isDone()) {
            // Else with the next tick.
            releaseAfter(receipt, asked(failure));
        }
    }

    /** The pause that the server asks for. */
    private static Duration asked(Throwable failure) {
        Throwable cause = failure instanceof CompletionException ? failure.getCause() : failure;
        return cause instanceof PgmqException refusal ? refusal.retryDelay().orElse(Duration.ZERO) : Duration.ZERO;
    }

    @Override
    void begin() {
        command(ConsumeRequest.newBuilder().setStart(options.start).build());
    }

    @Override
    void receive(ConsumeResponse reply) {
        if (reply.hasStarted()) {
            begun(reply.getStarted());
        }
        reply.getCommandResultsList().forEach(settler::answered);
        if (reply.getMessagesCount() > 0) {
            received(reply.getMessagesList().stream()
                    .map(message -> new Message(queue, message, this))
                    .toList());
        }
        if (reply.hasClosing()) {
            closing(reply.getClosing());
        }
        if (reply.hasStopped()) {
            stopped = true;
            notifyAll();
        }
    }

    private void begun(StreamStarted started) {
        started(started.getHeartbeatInterval());
        heartbeatInterval = Convert.duration(started.getHeartbeatInterval());
        visibilityTimeout = Convert.duration(started.getVisibilityTimeout());
        maxInFlight = started.getMaxInFlight();
        hasBackoff = started.getHasRetryBackoff();
        if (stopping) {
            command(ConsumeRequest.newBuilder()
                    .setStop(io.github.pgmqgrpc.v1.Stop.getDefaultInstance())
                    .build());
        }
        extendOlder(System.nanoTime());
        settler.flush();
    }

    private void received(List<Message> messages) {
        if (stopping) {
            giveBack(messages);
            return;
        }
        Delivery delivery = new Delivery(generation(), System.nanoTime());
        messages.forEach(message -> unsettled.put(message.receipt(), delivery));
        held.addAll(messages);
        handOut();
    }

    /**
     * The server keeps to the window of its stream; only while messages of an earlier one are in hand too, there can be
     * too many.
     */
    private void handOut() {
        if (held.isEmpty()) {
            return;
        }
        boolean isWithin = unsettled.values().stream().allMatch(delivery -> delivery.generation == generation());
        List<Message> given = new ArrayList<>();
        while (!held.isEmpty() && (isWithin || unsettled.size() - held.size() < maxInFlight)) {
            given.add(held.poll());
        }
        inbox.add(given);
    }

    private void giveBack(List<Message> messages) {
        messages.forEach(message -> settle(message.receipt(), Settler.GIVE_BACK));
    }

    @Override
    void lost(PgmqException cause) {
        if (stopping) {
            stopped = true;
            finish();
        }
        settler.lost();
        notifyAll();
    }

    @Override
    void refused(PgmqException cause) {
        stopping = true;
        stopped = true;
        inbox.end(cause);
        finish();
        settler.flush();
    }

    @Override
    void tick(long now) {
        if (isUsable() && now - heartbeatAt >= heartbeatInterval.toNanos()) {
            heartbeatAt = now;
            command(ConsumeRequest.newBuilder()
                    .setHeartbeat(ClientHeartbeat.getDefaultInstance())
                    .build());
        }
        Duration longest = options.start.getAutoExtend() ? options.longestExtension() : visibilityTimeout;
        unsettled.values().removeIf(delivery -> now - delivery.at > longest.toNanos());
        held.removeIf(message -> !unsettled.containsKey(message.receipt()));
        handOut();
        refused.values().removeIf(delivery -> now - delivery.at > longest.toNanos());
        List.copyOf(refused.keySet()).forEach(receipt -> releaseAfter(receipt, Duration.ZERO));
        if (now - extendedAt >= visibilityTimeout.toNanos() / 2) {
            extendOlder(now);
        }
        settler.tick(now);
    }

    /** The server extends what came over the stream in use; what came over an earlier one is this client's to extend. */
    private void extendOlder(long now) {
        if (!options.start.getAutoExtend() || !isUsable()) {
            return;
        }
        extendedAt = now;
        List<String> older = unsettled.entrySet().stream()
                .filter(entry -> entry.getValue().generation != generation())
                .map(Map.Entry::getKey)
                .toList();
        for (int from = 0; from < older.size(); from += MOST_RECEIPTS) {
            List<String> some = older.subList(from, Math.min(older.size(), from + MOST_RECEIPTS));
            // Its result tells nothing that settling will not tell.
            command(ConsumeRequest.newBuilder()
                    .setExtend(Extend.newBuilder().addAllReceipts(some))
                    .build());
        }
    }

    /** Over which stream messages came, and when. */
    private record Delivery(int generation, long at) {}
}

package io.github.pgmqgrpc;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.time.Duration;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.Function;
import java.util.function.Supplier;

/** What all objects of one client share: the channel, its threads, and the way in which unary calls are made. */
final class Connection {
    /** The calls that may be repeated whatever became of them, as the contract's service config lists them. */
    static final Set<String> HARMLESS_TWICE = Set.of(
            "CreateQueue",
            "GetQueue",
            "ListQueues",
            "GetQueueMetrics",
            "ListQueueMetrics",
            "Read",
            "Watch",
            "Delete",
            "Archive",
            "Release",
            "DeadLetter",
            "ValidateName",
            "GetServerInfo",
            "BindTopic",
            "UnbindTopic",
            "ListTopicBindings",
            "TestRouting",
            "UpdateQueue",
            "ListMessages",
            "ListArchivedMessages",
            "ListNotifications",
            "ListClients");

    static final int MOST_REPETITIONS = 3;

    final ManagedChannel transport;
    /** The channel with all interceptors. */
    final Channel channel;

    final JsonCodec json;
    final ExecutorService executor;
    final ScheduledExecutorService timer;
    /** Streams that are to be closed with the client. */
    private final Set<LastingStream<?, ?>> streams = ConcurrentHashMap.newKeySet();

    /** Whether the end has begun: nothing lasting is opened any more. */
    private final AtomicBoolean closing = new AtomicBoolean();

    /** Whether nothing is called any more: handlers, which may call, have ended by then. */
    private volatile boolean closed;

    private final CompletableFuture<Void> end = new CompletableFuture<>();

    final Sends sends = new Sends(this);

    Connection(
            ManagedChannel transport,
            Channel channel,
            JsonCodec json,
            ExecutorService executor,
            ScheduledExecutorService timer) {
        this.transport = transport;
        this.channel = channel;
        this.json = json;
        this.executor = executor;
        this.timer = timer;
    }

    /** Makes a call, and again where that is safe, until the deadline. */
    <Q, R> R call(MethodDescriptor<Q, R> method, Q request, Duration allowance, boolean harmlessTwice) {
        return repeat(allowance, harmlessTwice, deadline -> once(method, request, deadline));
    }

    <Q, R> R once(MethodDescriptor<Q, R> method, Q request, Deadline deadline) {
        refuseIfClosed();
        Departure departure = new Departure();
        try {
            CallOptions options = departure.watch(CallOptions.DEFAULT.withDeadline(deadline));
            return ClientCalls.blockingUnaryCall(channel, method, options, request);
        } catch (StatusRuntimeException e) {
            if (!departure.left()) {
                refuseIfClosed();
            }
            throw PgmqException.of(e.getStatus().withCause(e), e.getTrailers(), departure.left());
        }
    }

    /** Attempts something, and again where that is safe, until the deadline. */
    <R> R repeat(Duration allowance, boolean harmlessTwice, Function<Deadline, R> attempt) {
        Deadline deadline = Deadline.after(allowance.toNanos(), TimeUnit.NANOSECONDS);
        boolean mayBeApplied = false;
        for (int failures = 1; ; failures++) {
            try {
                return attempt.apply(deadline);
            } catch (PgmqException failure) {
                mayBeApplied |= failure.outcomeUnknown();
                Duration pause = Backoff.pause(failures, failure.retryDelay().orElse(null));
                if (closed
                        || failures > MOST_REPETITIONS
                        || !failure.isRepeatable(harmlessTwice)
                        || deadline.timeRemaining(TimeUnit.NANOSECONDS) <= pause.toNanos()
                        || !sleep(pause)) {
                    throw failure.with(mayBeApplied);
                }
                // The channel's own pauses between attempts to connect grow to two minutes.
                transport.resetConnectBackoff();
            }
        }
    }

    /** Waits for what a stream brings. */
    static <T> T await(Future<T> future) {
        try {
            return future.get();
        } catch (ExecutionException e) {
            if (e.getCause() instanceof PgmqException failure) {
                throw failure.told();
            }
            throw new IllegalStateException(e.getCause());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw PgmqException.local(
                    Status.CANCELLED.withDescription("interrupted").withCause(e), true);
        }
    }

    /** The same in another thread. */
    <T> CompletableFuture<T> later(Supplier<T> work) {
        try {
            return CompletableFuture.supplyAsync(work, executor);
        } catch (RejectedExecutionException e) {
            return CompletableFuture.failedFuture(closedFailure(false));
        }
    }

    /** Opens a stream that the end of the client ends. */
    <S extends LastingStream<?, ?>> S open(Supplier<S> stream) {
        if (closing.get()) {
            throw closedFailure(false);
        }
        return adopt(stream);
    }

    /** The same as long as anything can be called, for sends of handlers that are waited for. */
    <S extends LastingStream<?, ?>> S adopt(Supplier<S> stream) {
        refuseIfClosed();
        S opened;
        try {
            opened = stream.get();
        } catch (RejectedExecutionException e) {
            throw closedFailure(false);
        }
        streams.add(opened);
        if (closed) {
            opened.close();
        }
        if (opened.ended.isDone()) {
            streams.remove(opened);
        }
        return opened;
    }

    void forget(LastingStream<?, ?> stream) {
        streams.remove(stream);
    }

    void refuseIfClosed() {
        if (closed) {
            throw closedFailure(false);
        }
    }

    static PgmqException closedFailure(boolean outcomeUnknown) {
        return PgmqException.local(Status.CANCELLED.withDescription("the client is closed"), outcomeUnknown);
    }

    /** Runs what belongs to the application, away from the streams; after the end of the client, at once. */
    void elsewhere(Runnable work) {
        try {
            executor.execute(work);
        } catch (RejectedExecutionException e) {
            work.run();
        }
    }

    /** Closes, or waits until another thread has; but a handler, which is waited for, does not wait. */
    void close() {
        boolean isFirst = closing.compareAndSet(false, true);
        if (streams.stream().anyMatch(LastingStream::isRunByThisThread)) {
            if (isFirst) {
                streams.forEach(LastingStream::stop);
                executor.execute(this::closeNow);
            }
            return;
        }
        if (isFirst) {
            closeNow();
            return;
        }
        try {
            end.get();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        } catch (ExecutionException e) {
            throw new IllegalStateException(e.getCause());
        }
    }

    private void closeNow() {
        try {
            streams.forEach(LastingStream::stop);
            streams.stream().filter(Consumer.class::isInstance).forEach(LastingStream::close);
            closed = true;
            sends.close();
            streams.forEach(LastingStream::close);
            closeTransport();
        } finally {
            end.complete(null);
        }
    }

    private void closeTransport() {
        timer.shutdownNow();
        transport.shutdown();
        try {
            if (!transport.awaitTermination(5, TimeUnit.SECONDS)) {
                transport.shutdownNow();
            }
        } catch (InterruptedException e) {
            transport.shutdownNow();
            Thread.currentThread().interrupt();
        }
        executor.shutdown();
    }

    private static boolean sleep(Duration pause) {
        try {
            TimeUnit.NANOSECONDS.sleep(pause.toNanos());
            return true;
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            return false;
        }
    }
}

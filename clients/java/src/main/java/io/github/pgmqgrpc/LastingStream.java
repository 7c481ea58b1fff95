package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.Closing;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/**
 * A stream that outlives the streams of gRPC that it consists of: one that breaks, is silent for too long, or ends as
 * planned is followed by another, after a pause that the server wishes or that grows.
 *
 * <p>Everything that a subclass is told is told under the lock of this object.
 */
abstract class LastingStream<Q, R> implements AutoCloseable {
    private static final Logger LOG = System.getLogger("io.github.pgmqgrpc");
    private static final Duration SILENCE_BEFORE_START = Duration.ofSeconds(50);

    final Connection connection;
    final CompletableFuture<Void> ended = new CompletableFuture<>();
    private final MethodDescriptor<Q, R> method;
    private final Future<?> pulse;
    private Attempt current;
    private int generation;
    private int failures;
    private boolean opening;
    private boolean leaving;

    LastingStream(Connection connection, MethodDescriptor<Q, R> method) {
        this.connection = connection;
        this.method = method;
        this.pulse = connection.timer.scheduleAtFixedRate(this::beat, 1, 1, TimeUnit.SECONDS);
    }

    /** A stream of gRPC has been opened: the first command goes out. */
    abstract void begin();

    /** A reply has come over the stream in use. */
    abstract void receive(R reply);

    /** The stream in use is gone. Without a cause it was never confirmed, or the server has ended it in good order. */
    abstract void lost(PgmqException cause);

    /** The server refuses for good. */
    abstract void refused(PgmqException cause);

    /** The stream is to be opened again after a pause. Where the server has ended it in good order, there is no cause. */
    void postponed(int failuresInARow, PgmqException cause) {}

    /** Once a second, with or without a stream. */
    abstract void tick(long now);

    @Override
    public abstract void close();

    /** Takes nothing more, without waiting. */
    void stop() {}

    /** Whether this waits for the calling thread when it is closed. */
    boolean isRunByThisThread() {
        return false;
    }

    /** Opens a stream if there is none and none is coming. */
    final synchronized void open() {
        if (current == null && !opening && !ended.isDone()) {
            attempt();
        }
    }

    private synchronized void attempt() {
        opening = false;
        if (ended.isDone()) {
            return;
        }
        generation++;
        Attempt attempt = new Attempt();
        current = attempt;
        try {
            attempt.call = connection.channel.newCall(method, attempt.departure.watch(CallOptions.DEFAULT));
            attempt.call.start(attempt, new Metadata());
            attempt.call.request(2);
            begin();
        } catch (RuntimeException e) {
            // An interceptor, such as one that fetches credentials, has failed.
            attempt.onClose(Status.fromThrowable(e), new Metadata());
        }
    }

    /** Sends a command, if there is a stream. */
    final boolean command(Q command) {
        if (current == null || leaving) {
            return false;
        }
        current.call.sendMessage(command);
        return true;
    }

    /** Says that no command follows, which keeps a stream that only the server sends on. */
    final void endOfCommands() {
        current.call.halfClose();
    }

    /** Whether the server has confirmed the stream in use, and does not want to end it. */
    final boolean isStarted() {
        return current != null && current.started && current.reopenAfter == null && !leaving;
    }

    /** Whether commands can be sent: also while the server is about to end the stream. */
    final boolean isUsable() {
        return current != null && current.started && !leaving;
    }

    /** Tells streams of gRPC apart. */
    final int generation() {
        return generation;
    }

    final void started(com.google.protobuf.Duration heartbeatInterval) {
        current.started = true;
        current.silence = Convert.duration(heartbeatInterval).multipliedBy(2);
        failures = 0;
    }

    final void closing(Closing closing) {
        LOG.log(Level.DEBUG, "the server ends {0}: {1}", method.getBareMethodName(), closing.getReason());
        current.reopenAfter = Convert.duration(closing.getRetryDelay());
    }

    /** Leaves the stream in good order: what is under way is answered. */
    final synchronized void leave() {
        if (current == null) {
            finish();
        } else if (!leaving) {
            leaving = true;
            current.call.halfClose();
        }
    }

    /** Ends at once, whatever is under way. */
    final synchronized void finish() {
        pulse.cancel(false);
        connection.forget(this);
        ended.complete(null);
        if (current != null) {
            // Nothing can be sent any more.
            leaving = true;
            current.call.cancel("closed", null);
        }
    }

    private synchronized void beat() {
        try {
            long now = System.nanoTime();
            if (current != null && now - current.heardAt > current.silence.toNanos()) {
                // It ends here and now: nothing can be sent over a call that is cancelled.
                Attempt silent = current;
                silent.call.cancel("silent for too long", null);
                Status status = Status.UNAVAILABLE.withDescription("the stream was silent for too long");
                ended(silent, PgmqException.local(status, true));
            }
            tick(now);
        } catch (RuntimeException e) {
            // What is scheduled ends with its first exception, and signs of life and deadlines would end with it.
            LOG.log(Level.WARNING, method.getBareMethodName() + " could not look after its stream", e);
        }
    }

    /** Only after {@code closing} is an end without an error in good order: what is unanswered was not taken then. */
    private PgmqException cause(Attempt attempt, Status status, Metadata trailers) {
        if (!status.isOk()) {
            return PgmqException.of(status, trailers, attempt.departure.left());
        }
        return attempt.reopenAfter != null
                ? null
                : PgmqException.local(Status.UNAVAILABLE.withDescription("the stream has ended unannounced"), true);
    }

    private void ended(Attempt attempt, PgmqException cause) {
        current = null;
        lost(attempt.started ? cause : null);
        if (leaving || ended.isDone()) {
            finish();
        } else if (cause != null && !cause.isPassing()) {
            refused(cause);
        } else {
            Duration wish = attempt.reopenAfter != null || cause == null
                    ? attempt.reopenAfter
                    : cause.retryDelay().orElse(null);
            reopen(Backoff.pause(++failures, wish), cause);
            postponed(failures, cause);
        }
    }

    private void reopen(Duration pause, PgmqException cause) {
        LOG.log(Level.DEBUG, () -> method.getBareMethodName() + " is opened again in " + pause, cause);
        opening = true;
        if (failures > 1) {
            connection.transport.resetConnectBackoff();
        }
        connection.timer.schedule(
                () -> connection.executor.execute(this::attempt), pause.toNanos(), TimeUnit.NANOSECONDS);
    }

    /** One stream of gRPC. */
    private final class Attempt extends ClientCall.Listener<R> {
        final Departure departure = new Departure();
        ClientCall<Q, R> call;
        boolean started;
        Duration reopenAfter;
        Duration silence = SILENCE_BEFORE_START;
        volatile long heardAt = System.nanoTime();

        @Override
        public void onMessage(R reply) {
            heardAt = System.nanoTime();
            synchronized (LastingStream.this) {
                if (current == this) {
                    receive(reply);
                }
            }
            call.request(1);
        }

        @Override
        public void onClose(Status status, Metadata trailers) {
            synchronized (LastingStream.this) {
                if (current == this) {
                    ended(this, cause(this, status, trailers));
                }
            }
        }
    }
}

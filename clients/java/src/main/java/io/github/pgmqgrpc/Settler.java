package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.CommandResult;
import io.github.pgmqgrpc.v1.ConsumeRequest;
import io.github.pgmqgrpc.v1.Extend;
import io.github.pgmqgrpc.v1.Settle;
import io.github.pgmqgrpc.v1.SettleAction;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;

/**
 * Settles and extends the messages of a consumer: over its stream while there is one, by unary calls while there is
 * none. What waits goes together, as far as it is settled alike. Guarded by the consumer's lock.
 */
final class Settler {
    /** What becomes of a message that was received and never taken: as if it had not come. */
    static final ConsumeRequest GIVE_BACK = how(SettleAction.SETTLE_ACTION_GIVE_BACK, null, "");

    private static final int MOST_RECEIPTS = 1_000;
    /** So many commands are under way at most; what comes meanwhile is gathered. */
    private static final int MOST_COMMANDS = 8;

    private final Consumer consumer;
    private final Queue queue;
    private final ArrayDeque<Entry> waiting = new ArrayDeque<>();
    private final Map<Long, List<Entry>> sent = new LinkedHashMap<>();
    private int unanswered;
    private boolean calling;
    private long lastId;

    Settler(Consumer consumer, Queue queue) {
        this.consumer = consumer;
        this.queue = queue;
    }

    /** Gives a command for a message, which {@code how} is without an id and receipts. */
    CompletableFuture<ItemResult> settle(String receipt, ConsumeRequest how) {
        Entry entry = new Entry(
                receipt, how, System.nanoTime() + queue.client().deadline.toNanos());
        synchronized (consumer) {
            unanswered++;
            waiting.add(entry);
            flush();
        }
        entry.result.whenComplete((result, failure) -> answered());
        return entry.result;
    }

    boolean isIdle() {
        return unanswered == 0;
    }

    private void answered() {
        synchronized (consumer) {
            unanswered--;
            consumer.notifyAll();
        }
    }

    void flush() {
        while (!waiting.isEmpty() && sent.size() < MOST_COMMANDS && consumer.isUsable()) {
            List<Entry> group = nextGroup();
            List<String> receipts = receipts(group);
            ConsumeRequest.Builder command = group.get(0).how.toBuilder().setRequestId(++lastId);
            if (command.hasExtend()) {
                command.getExtendBuilder().addAllReceipts(receipts);
            } else {
                command.getSettleBuilder().addAllReceipts(receipts);
            }
            group.forEach(entry -> entry.hasLeft = true);
            sent.put(lastId, group);
            consumer.command(command.build());
        }
        if (!waiting.isEmpty() && !consumer.isUsable() && !calling) {
            calling = true;
            try {
                consumer.connection.executor.execute(this::call);
            } catch (RejectedExecutionException e) {
                calling = false;
                List<Entry> left = List.copyOf(waiting);
                waiting.clear();
                left.forEach(entry -> entry.result.completeExceptionally(Connection.closedFailure(entry.hasLeft)));
            }
        }
    }

    void answered(CommandResult result) {
        List<Entry> group = sent.remove(result.getRequestId());
        if (group == null) {
            return;
        }
        if (result.hasError()) {
            PgmqException failure = PgmqException.of(result.getError());
            if (failure.code() == Status.Code.UNAVAILABLE) {
                postpone(group, failure);
            } else {
                failed(group, failure);
            }
        } else {
            complete(group, result.getResultsList().stream().map(ItemResult::of).toList());
        }
        flush();
    }

    /** Receipts outlive their stream, and settling twice does no harm: what has no answer is settled again. */
    void lost() {
        List<Entry> unanswered = new ArrayList<>();
        sent.values().forEach(unanswered::addAll);
        sent.clear();
        again(unanswered);
        flush();
    }

    void tick(long now) {
        PgmqException late = PgmqException.local(
                Status.DEADLINE_EXCEEDED.withDescription("no answer to a settle within the client's deadline"), true);
        waiting.removeIf(entry -> entry.isOver(now) && entry.result.completeExceptionally(late));
        sent.values()
                .forEach(group -> group.stream()
                        .filter(entry -> entry.isOver(now))
                        .forEach(entry -> entry.result.completeExceptionally(late)));
        flush();
    }

    /** By unary calls, as long as there is no stream. Runs in a thread of its own. */
    private void call() {
        while (true) {
            List<Entry> group;
            synchronized (consumer) {
                calling = false;
                if (waiting.isEmpty() || consumer.isUsable()) {
                    flush();
                    return;
                }
                calling = true;
                group = nextGroup();
            }
            try {
                complete(group, queue.settle(Items.receipts(receipts(group)), group.get(0).how));
            } catch (PgmqException failure) {
                synchronized (consumer) {
                    if (failure.code() == Status.Code.UNAVAILABLE && !consumer.ended.isDone()) {
                        // For the next stream now, or for the next try.
                        group.forEach(entry -> entry.hasLeft |= failure.outcomeUnknown());
                        if (failure.retryDelay().isPresent()) {
                            postpone(group, failure);
                        } else {
                            again(group);
                        }
                        calling = false;
                        return;
                    }
                    failed(group, failure);
                }
            } catch (RuntimeException e) {
                // An interceptor, such as one that fetches credentials, has failed; perhaps not at the first attempt.
                synchronized (consumer) {
                    failed(group, PgmqException.local(Status.fromThrowable(e), true));
                }
            }
        }
    }

    /** What is refused because of one message, and perhaps done to others, is tried again one by one. */
    private void failed(List<Entry> group, PgmqException failure) {
        if (group.size() > 1 && failure.isPartial()) {
            group.forEach(entry -> entry.alone = true);
            again(group);
        } else {
            group.forEach(entry -> entry.result.completeExceptionally(failure));
        }
    }

    /** What the server refuses for the moment is tried again after the pause that it asks for, as long as there is time. */
    private void postpone(List<Entry> group, PgmqException failure) {
        Duration pause =
                Backoff.pause(++group.get(0).refusals, failure.retryDelay().orElse(null));
        long then = System.nanoTime() + pause.toNanos();
        List<Entry> inTime = group.stream().filter(entry -> !entry.isOver(then)).toList();
        group.stream()
                .filter(entry -> entry.isOver(then))
                .forEach(entry -> entry.result.completeExceptionally(failure));
        try {
            consumer.connection.timer.schedule(() -> resume(inTime), pause.toNanos(), TimeUnit.NANOSECONDS);
        } catch (RejectedExecutionException e) {
            inTime.forEach(entry -> entry.result.completeExceptionally(failure));
        }
    }

    private void resume(List<Entry> group) {
        synchronized (consumer) {
            again(group);
            flush();
        }
    }

    private void again(List<Entry> group) {
        for (int i = group.size() - 1; i >= 0; i--) {
            waiting.addFirst(group.get(i));
        }
    }

    private List<Entry> nextGroup() {
        List<Entry> group = new ArrayList<>(List.of(waiting.poll()));
        Entry first = group.get(0);
        while (!first.alone
                && group.size() < MOST_RECEIPTS
                && !waiting.isEmpty()
                && waiting.peek().isSettledWith(first)) {
            group.add(waiting.poll());
        }
        return group;
    }

    private static void complete(List<Entry> group, List<ItemResult> results) {
        for (int i = 0; i < group.size(); i++) {
            group.get(i).complete(results.get(i));
        }
    }

    private static List<String> receipts(List<Entry> group) {
        return group.stream().map(entry -> entry.receipt).toList();
    }

    static ConsumeRequest extension(Duration visibilityTimeout) {
        return ConsumeRequest.newBuilder()
                .setExtend(Extend.newBuilder().setVisibilityTimeout(Convert.duration(visibilityTimeout)))
                .build();
    }

    static ConsumeRequest how(SettleAction action, Duration delay, String reason) {
        Settle.Builder how = Settle.newBuilder().setAction(action).setReason(reason);
        if (delay != null) {
            how.setDelay(Convert.duration(delay));
        }
        return ConsumeRequest.newBuilder().setSettle(how).build();
    }

    private static final class Entry {
        final String receipt;
        final ConsumeRequest how;
        final long deadline;
        final CompletableFuture<ItemResult> result = new CompletableFuture<>();
        /** Whether it was refused together with others, and perhaps done all the same. */
        boolean alone;
        /** How often the server has refused it, or what was settled with it, for the moment. */
        int refusals;
        /** Whether it was given to a stream, or to a call that has failed. */
        boolean hasLeft;

        Entry(String receipt, ConsumeRequest how, long deadline) {
            this.receipt = receipt;
            this.how = how;
            this.deadline = deadline;
        }

        void complete(ItemResult came) {
            // A message that is gone now was settled by the command that was refused because of another.
            boolean isDone = alone && how.hasSettle() && came.outcome() == Outcome.NOT_FOUND;
            result.complete(isDone ? new ItemResult(Outcome.DONE, came.vt()) : came);
        }

        boolean isSettledWith(Entry other) {
            return !alone && how.equals(other.how);
        }

        boolean isOver(long now) {
            return now - deadline > 0;
        }
    }
}

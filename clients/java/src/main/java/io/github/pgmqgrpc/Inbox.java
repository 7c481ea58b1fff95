package io.github.pgmqgrpc;

import java.time.Duration;
import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.TimeUnit;

/** Hands what a stream brings to the threads that take it, until the stream ends. */
final class Inbox<T> {
    private final ArrayDeque<T> items = new ArrayDeque<>();
    private boolean ended;
    private PgmqException failure;

    synchronized void add(List<T> added) {
        items.addAll(added);
        notifyAll();
    }

    /** Ends what is taken; those who wait get nothing, or the failure. The first end counts. */
    synchronized void end(PgmqException cause) {
        if (!ended) {
            ended = true;
            failure = cause;
        }
        notifyAll();
    }

    synchronized List<T> drain() {
        List<T> left = List.copyOf(items);
        items.clear();
        return left;
    }

    /** Takes the next item, or null if there is none in time or at all. An interrupted thread gets none. */
    synchronized T take(Duration timeout) {
        long deadline = System.nanoTime() + timeout.toNanos();
        while (items.isEmpty() && !ended) {
            long left = deadline - System.nanoTime();
            if (left <= 0) {
                return null;
            }
            try {
                TimeUnit.NANOSECONDS.timedWait(this, left);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
                return null;
            }
        }
        if (items.isEmpty() && failure != null) {
            throw failure;
        }
        return items.poll();
    }

    Iterator<T> iterator() {
        return new Iterator<>() {
            private T next;

            @Override
            public boolean hasNext() {
                while (next == null) {
                    next = take(Duration.ofDays(1));
                    if (next == null && (isEnded() || Thread.currentThread().isInterrupted())) {
                        return false;
                    }
                }
                return true;
            }

            @Override
            public T next() {
                if (!hasNext()) {
                    throw new NoSuchElementException();
                }
                T given = next;
                next = null;
                return given;
            }
        };
    }

    private synchronized boolean isEnded() {
        return ended && items.isEmpty();
    }
}

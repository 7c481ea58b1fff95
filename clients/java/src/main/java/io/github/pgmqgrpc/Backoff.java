package io.github.pgmqgrpc;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** Pauses between repetitions: growing, and drawn at random so that not everybody comes back at once. */
final class Backoff {
    private static final long FIRST_MILLIS = 100;
    private static final long LONGEST_MILLIS = 2_000;

    private static final long LONGEST_RELEASE_MILLIS = 60_000;

    private Backoff() {}

    /** The pause after the given number of failures in a row, from 1. A wish of the server goes before. */
    static Duration pause(int failures, Duration wish) {
        if (wish != null) {
            return wish;
        }
        long longest = Math.min(FIRST_MILLIS << Math.min(failures - 1, 10), LONGEST_MILLIS);
        return Duration.ofMillis(ThreadLocalRandom.current().nextLong(longest / 2, longest + 1));
    }

    /** The delay of a message whose handler has failed, and that was read so often, from 1. */
    static Duration afterFailure(int readCt) {
        long longest = Math.min(1_000L << Math.min(Math.max(readCt - 1, 0), 10), LONGEST_RELEASE_MILLIS);
        return Duration.ofMillis(ThreadLocalRandom.current().nextLong(longest * 4 / 5, longest + 1));
    }
}

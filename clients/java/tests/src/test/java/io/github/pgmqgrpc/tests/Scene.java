package io.github.pgmqgrpc.tests;

import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Queue;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.AfterEach;

/** A client of the server under test, and queues that are dropped at the end. */
abstract class Scene {
    /** Nothing here takes so long, unless it never comes. */
    static final Duration LIMIT = Duration.ofSeconds(30);

    static final String TARGET = System.getenv("PGMQ_GRPC_TARGET");

    private static final String RUN = "t" + Long.toString(System.currentTimeMillis() % 100_000_000, 36);
    private static final AtomicInteger QUEUES = new AtomicInteger();

    final PgmqClient client = PgmqClient.connect(TARGET);
    private final List<String> queues = new ArrayList<>();

    Queue queue() {
        return queue(client);
    }

    /** A new queue, of a client that may reach the server by another way. */
    Queue queue(PgmqClient other) {
        String name = RUN + "_" + QUEUES.incrementAndGet();
        client.createQueue(name);
        queues.add(name);
        return other.queue(name);
    }

    @AfterEach
    void dropQueues() {
        for (String name : queues) {
            try {
                client.dropQueue(name);
            } catch (PgmqException e) {
                // A test has dropped it.
            }
        }
        client.close();
    }

    static void eventually(String what, BooleanSupplier holds) throws InterruptedException {
        long deadline = System.nanoTime() + LIMIT.toNanos();
        while (!holds.getAsBoolean()) {
            if (System.nanoTime() > deadline) {
                throw new AssertionError("it did not come about: " + what);
            }
            Thread.sleep(20);
        }
    }
}

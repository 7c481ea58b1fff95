package io.github.pgmqgrpc.bench;

import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.Producer;
import io.github.pgmqgrpc.Queue;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;

/** Prints the figures of this client: what one process sends and settles in a second, and how long a lone send takes. */
public final class Bench {
    private static final int OUTSTANDING = 64;
    private static final int MESSAGES = 40_000;
    private static final int LONE_SENDS = 1_000;

    private Bench() {}

    /**
     * Measures on a queue of its own.
     *
     * @param arguments none
     * @throws InterruptedException never, as nobody interrupts it
     */
    public static void main(String[] arguments) throws InterruptedException {
        try (PgmqClient client = PgmqClient.connect()) {
            Queue queue = client.queue("bench_java");
            queue.create();
            try {
                // The first round warms up what Java compiles.
                sends(queue, MESSAGES / 4);
                settles(queue, MESSAGES / 4);
                System.out.printf("sends/s at %d outstanding: %,.0f%n", OUTSTANDING, sends(queue, MESSAGES));
                System.out.printf("consume and settle/s: %,.0f%n", settles(queue, MESSAGES));
                System.out.printf("sends/s of %d threads: %,.0f%n", OUTSTANDING, threads(queue, MESSAGES / 2));
                System.out.printf("lone send, p50: %.2f ms%n", loneSend(queue));
            } finally {
                queue.drop();
            }
        }
    }

    private static double sends(Queue queue, int messages) throws InterruptedException {
        Map<String, Object> body = Map.of("order", 1, "total", "12.50");
        Semaphore outstanding = new Semaphore(OUTSTANDING);
        long start = System.nanoTime();
        try (Producer producer = queue.producer()) {
            for (int i = 0; i < messages; i++) {
                outstanding.acquire();
                producer.send(body).whenComplete((result, failure) -> outstanding.release());
            }
            outstanding.acquire(OUTSTANDING);
        }
        return perSecond(messages, start);
    }

    /** The same by threads that wait for each message, which share a stream by themselves. */
    private static double threads(Queue queue, int messages) throws InterruptedException {
        Map<String, Object> body = Map.of("order", 1, "total", "12.50");
        ExecutorService threads = Executors.newFixedThreadPool(OUTSTANDING);
        long start = System.nanoTime();
        for (int i = 0; i < messages; i++) {
            threads.execute(() -> queue.send(body));
        }
        threads.shutdown();
        if (!threads.awaitTermination(1, TimeUnit.MINUTES)) {
            throw new IllegalStateException("not all messages are sent");
        }
        return perSecond(messages, start);
    }

    private static double settles(Queue queue, int messages) throws InterruptedException {
        CountDownLatch handled = new CountDownLatch(messages);
        long start = System.nanoTime();
        try (Consumer consumer = queue.handle(options -> options.maxInFlight(1_000), message -> handled.countDown())) {
            if (!handled.await(1, TimeUnit.MINUTES)) {
                throw new IllegalStateException(handled.getCount() + " messages have not come");
            }
            consumer.stop();
        }
        return perSecond(messages, start);
    }

    private static double loneSend(Queue queue) {
        Map<String, Object> body = Map.of("order", 1, "total", "12.50");
        long[] took = new long[LONE_SENDS];
        for (int i = 0; i < took.length; i++) {
            long start = System.nanoTime();
            queue.send(body);
            took[i] = System.nanoTime() - start;
        }
        Arrays.sort(took);
        return took[took.length / 2] / 1e6;
    }

    private static double perSecond(int messages, long start) {
        return messages / ((System.nanoTime() - start) / 1e9);
    }
}

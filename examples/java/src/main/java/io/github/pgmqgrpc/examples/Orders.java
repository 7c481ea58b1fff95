package io.github.pgmqgrpc.examples;

import io.github.pgmqgrpc.ArchiveFilter;
import io.github.pgmqgrpc.ArchivedMessage;
import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.Producer;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.QueuePolicy;
import io.github.pgmqgrpc.SendResult;
import java.io.IOException;
import java.math.BigDecimal;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.stream.IntStream;

/**
 * Orders come in, a worker bills them, and what was billed is archived and can be replayed.
 *
 * <p>{@code ORDERS_QUEUE} names the queue. {@code EXAMPLE_ROLE} says what to do: {@code intake} sends orders, {@code
 * worker} works until none has come for some seconds, and {@code all}, without it, does everything on a queue of its own
 * and cleans up.
 */
public final class Orders {
    private static final int ORDERS = 20;
    private static final int POISON = 13;
    private static final Duration IDLE = Duration.ofSeconds(5);

    private Orders() {}

    /** The body of a message. Its total is text, so that no language reads it as a float; the poison has none. */
    record Order(int order, String total, String language) {}

    /**
     * Does what {@code EXAMPLE_ROLE} says.
     *
     * @param arguments none
     */
    public static void main(String[] arguments) {
        String name = System.getenv().getOrDefault("ORDERS_QUEUE", "orders");
        String role = System.getenv().getOrDefault("EXAMPLE_ROLE", "all");
        try (PgmqClient client = PgmqClient.builder().name("orders of Java").build()) {
            Queue queue = client.queue(name);
            switch (role) {
                case "intake" -> intake(queue);
                case "worker" -> new Worker().work(queue, Integer.MAX_VALUE);
                case "all" -> everything(client, queue);
                default -> throw new IllegalArgumentException(role + " is no role: all, intake or worker");
            }
        }
    }

    /** Sends orders, many at once over one stream. One of them cannot be billed: it has no total. */
    private static void intake(Queue queue) {
        try (Producer producer = queue.producer(options -> options.idempotent())) {
            List<CompletableFuture<SendResult>> sent = IntStream.rangeClosed(1, ORDERS)
                    .mapToObj(number -> new Order(number, number == POISON ? null : number + ".50", "java"))
                    .map(producer::send)
                    .toList();
            sent.forEach(CompletableFuture::join);
            System.out.printf("sent %d orders%n", sent.size());
        }
    }

    /** Bills orders until enough are done, or none has come for a while. */
    private static final class Worker {
        private final Map<String, Integer> billed = new TreeMap<>();
        private BigDecimal total = BigDecimal.ZERO;
        private int retried;
        private int givenUp;
        private volatile long lastAt = System.nanoTime();

        /** Handles four at once. What returns is archived; what throws comes again when the queue's backoff is over. */
        void work(Queue queue, int enough) {
            try (Consumer consumer = queue.handle(
                    options -> options.concurrency(4).archive().visibilityTimeout(Duration.ofSeconds(30)),
                    this::bill)) {
                while (done() < enough && System.nanoTime() - lastAt < IDLE.toNanos()) {
                    pause();
                }
                consumer.stop();
            }
            System.out.printf("billed %s for %s, retried %d, gave up %d%n", billed, total, retried, givenUp);
        }

        /** Bills one order. The service that it needs fails now and then, but not twice for one order. */
        private synchronized void bill(Message message) throws IOException {
            lastAt = System.nanoTime();
            Order order = message.message(Order.class);
            if (order.order() % 5 == 0 && message.readCt() == 1) {
                retried++;
                throw new IOException("the billing service is busy");
            }
            if (order.total() == null) {
                // No repetition cures this.
                message.deadLetter("it has no total");
                givenUp++;
                return;
            }
            total = total.add(new BigDecimal(order.total()));
            billed.merge(order.language(), 1, Integer::sum);
        }

        private synchronized int done() {
            return givenUp
                    + billed.values().stream().mapToInt(Integer::intValue).sum();
        }

        private static void pause() {
            try {
                Thread.sleep(20);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }
    }

    /** Shows the whole life of orders, and checks it. */
    private static void everything(PgmqClient client, Queue queue) {
        Queue failed = client.queue(queue.name() + "_failed");
        failed.create();
        queue.create(options -> options.policy(QueuePolicy.none()
                .deadLetter(failed.name(), 5)
                .retryBackoff(Duration.ofMillis(100), Duration.ofSeconds(1))));
        try {
            intake(queue);
            new Worker().work(queue, ORDERS);

            List<Message> letters = failed.read(options -> options.maxMessages(10));
            check(letters.size() == 1, "there is one dead letter");
            Message letter = letters.get(0);
            check(letter.message(Order.class).order() == POISON, "the poison is the dead letter");
            System.out.printf(
                    "order %d was given up: %s%n", POISON, letter.headers().get("x-pgmq-dead-letter"));
            letter.delete();

            List<ArchivedMessage> archived =
                    queue.listArchivedMessages(ArchiveFilter.all()).toList();
            System.out.printf(
                    "the archive holds %d orders, the first of %s%n",
                    archived.size(), archived.get(0).archivedAt());
            check(archived.size() == ORDERS - 1, "every other order is archived");

            ArchiveFilter first =
                    ArchiveFilter.all().msgIds(List.of(archived.get(0).message().msgId()));
            check(queue.replay(first).count() == 1, "an order is replayed");
            Worker again = new Worker();
            again.work(queue, 1);
            check(again.done() == 1, "a replayed order is billed again");
        } finally {
            queue.drop();
            failed.drop();
        }
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new IllegalStateException("not so: " + what);
        }
    }
}

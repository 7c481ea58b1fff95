package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Producer;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.Watcher;
import io.grpc.Status;
import java.io.File;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

class ClosingTest extends Scene {
    @Test
    void afterTheEndEverythingIsRefusedAtOnce() {
        PgmqClient other = PgmqClient.connect(TARGET);
        Queue queue = queue(other);
        queue.sendBatch(List.of(1, 2));
        Message read = queue.read().get(0);
        Consumer consumer = queue.consume();
        Message consumed = consumer.poll(LIMIT).orElseThrow();
        Watcher watcher = queue.watch();
        Producer producer = queue.producer(options -> options.idempotent());
        producer.send(3).join();
        other.close();
        other.close();
        List<Executable> words = List.of(
                () -> queue.send(4),
                () -> queue.sendBatch(List.of(4)),
                queue::read,
                queue::metrics,
                queue::consume,
                queue::watch,
                () -> queue.handle(message -> {}),
                () -> queue.producer().send(4),
                () -> producer.send(4),
                other::getServerInfo,
                read::delete,
                consumed::delete,
                () -> told(read.deleteAsync()),
                () -> told(consumed.deleteAsync()));
        for (Executable word : words) {
            PgmqException refusal = assertThrows(PgmqException.class, word);
            assertEquals(Status.Code.CANCELLED, refusal.code());
            assertTrue(refusal.getMessage().contains("the client is closed"), refusal.getMessage());
            assertFalse(refusal.outcomeUnknown());
        }
        assertTrue(consumer.poll(LIMIT).isEmpty());
        assertTrue(watcher.poll(LIMIT).isEmpty());
        assertEquals(3, client.queue(queue.name()).metrics().queueLength());
    }

    @Test
    void closingTheClientWaitsForHandlersWhichMayStillCall() throws Exception {
        PgmqClient other = PgmqClient.connect(TARGET);
        Queue queue = queue(other);
        queue.send("handled");
        CountDownLatch begun = new CountDownLatch(1);
        CountDownLatch wanted = new CountDownLatch(1);
        Consumer consumer = queue.handle(message -> {
            begun.countDown();
            wanted.await();
            queue.send("follows");
        });
        begun.await();
        CompletableFuture<Void> closing = CompletableFuture.runAsync(other::close);
        eventually("nothing new is begun", () -> {
            try {
                queue.producer().close();
                return false;
            } catch (PgmqException e) {
                return e.code() == Status.Code.CANCELLED;
            }
        });
        assertFalse(closing.isDone());
        wanted.countDown();
        closing.get(LIMIT.toSeconds(), TimeUnit.SECONDS);
        consumer.join();
        assertEquals("follows", client.queue(queue.name()).read().get(0).message());
        assertEquals(1, client.queue(queue.name()).metrics().queueLength());
    }

    @Test
    void aHandlerMayCloseItsConsumer() throws Exception {
        endsIn((consumer, other) -> consumer.join().close());
    }

    @Test
    void aHandlerMayCloseItsClient() throws Exception {
        endsIn((consumer, other) -> other.close());
    }

    private interface End {
        void call(CompletableFuture<Consumer> consumer, PgmqClient client);
    }

    private void endsIn(End end) throws Exception {
        PgmqClient other = PgmqClient.connect(TARGET);
        Queue queue = queue(other);
        CompletableFuture<Consumer> own = new CompletableFuture<>();
        Consumer consumer = queue.handle(message -> end.call(own, other));
        own.complete(consumer);
        queue.send("the only one");
        CompletableFuture<Void> joined = CompletableFuture.runAsync(consumer::join);
        joined.get(LIMIT.toSeconds(), TimeUnit.SECONDS);
        CompletableFuture.runAsync(other::close).get(LIMIT.toSeconds(), TimeUnit.SECONDS);
        assertEquals(0, client.queue(queue.name()).metrics().queueLength());
    }

    @Test
    void closingWaitsForAHandlerNoLongerThanTheDeadline() throws Exception {
        PgmqClient other = PgmqClient.builder()
                .target(TARGET)
                .deadline(Duration.ofSeconds(1))
                .build();
        Queue queue = queue(other);
        queue.send("held");
        CountDownLatch begun = new CountDownLatch(1);
        CountDownLatch never = new CountDownLatch(1);
        AtomicBoolean finished = new AtomicBoolean();
        Consumer consumer = queue.handle(message -> {
            begun.countDown();
            never.await();
            finished.set(true);
        });
        begun.await();
        CompletableFuture.runAsync(consumer::close).get(LIMIT.toSeconds(), TimeUnit.SECONDS);
        assertFalse(finished.get());
        never.countDown();
        other.close();
    }

    @Test
    void aHandlerMayEndTheProcess() throws Exception {
        Queue queue = queue();
        queue.send("the last one");
        Process process = new ProcessBuilder(
                        System.getProperty("java.home") + File.separator + "bin" + File.separator + "java",
                        "-XX:TieredStopAtLevel=1",
                        "-cp",
                        System.getProperty("java.class.path"),
                        Exiting.class.getName(),
                        queue.name())
                .inheritIO()
                .start();
        try {
            assertTrue(process.waitFor(LIMIT.toSeconds(), TimeUnit.SECONDS));
            assertEquals(Exiting.STATUS, process.exitValue());
        } finally {
            process.destroyForcibly();
        }
    }

    private static void told(CompletableFuture<?> settled) throws Throwable {
        try {
            settled.join();
        } catch (CompletionException e) {
            throw e.getCause();
        }
    }
}

package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.Outcome;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Producer;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.SendResult;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class StreamsTest extends Scene {
    @Test
    void aLoopEndsWhenItsConsumerIsStoppedAndTheRestIsFreeAtOnce() {
        Queue queue = queue();
        queue.sendBatch(List.of(1, 2, 3));
        List<Object> bodies = new ArrayList<>();
        try (Consumer consumer = queue.consume(options -> options.visibilityTimeout(Duration.ofHours(1)))) {
            for (Message message : consumer) {
                bodies.add(message.message());
                assertEquals(Outcome.DONE, message.delete());
                consumer.stop();
            }
        }
        assertEquals(List.of(1), bodies);
        assertEquals(2, queue.read(options -> options.maxMessages(10)).size());
    }

    @Test
    void closingTheClientEndsLoops() throws Exception {
        PgmqClient other = PgmqClient.connect(TARGET);
        Queue queue = queue(other);
        Consumer consumer = queue.consume();
        CompletableFuture<Integer> loop = CompletableFuture.supplyAsync(() -> {
            int taken = 0;
            for (Message message : consumer) {
                message.delete();
                taken++;
            }
            return taken;
        });
        queue.send("one");
        eventually(
                "the message is settled",
                () -> client.queue(queue.name()).metrics().queueLength() == 0);
        other.close();
        assertEquals(1, loop.get(LIMIT.toSeconds(), TimeUnit.SECONDS));
    }

    @Test
    void whatIsInHandIsSettledOverTheNextStream() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.connect(wire.target())) {
            Queue queue = queue(other);
            queue.send("held");
            try (Consumer consumer = queue.consume()) {
                Message held = consumer.poll(LIMIT).orElseThrow();
                wire.refuse();
                CompletableFuture<Outcome> settled = held.deleteAsync();
                assertFalse(settled.isDone());
                wire.mend();
                assertEquals(Outcome.DONE, settled.get(LIMIT.toSeconds(), TimeUnit.SECONDS));
                queue.send("next");
                assertEquals("next", consumer.poll(LIMIT).orElseThrow().message());
            }
        }
    }

    @Test
    void noMoreThanTheWindowIsInHandWhenTheStreamBreaks() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.connect(wire.target())) {
            Queue queue = queue(other);
            queue.sendBatch(List.of(1, 2, 3, 4));
            try (Consumer consumer = queue.consume(options -> options.maxInFlight(2))) {
                Message first = consumer.poll(LIMIT).orElseThrow();
                consumer.poll(LIMIT).orElseThrow();
                wire.mend();
                eventually(
                        "the next stream brings the others",
                        () -> client.queue(queue.name()).listMessages().stream().allMatch(m -> m.readCt() > 0));
                assertTrue(consumer.poll(Duration.ofMillis(500)).isEmpty());
                assertEquals(Outcome.DONE, first.delete());
                assertEquals(3, consumer.poll(LIMIT).orElseThrow().msgId());
            }
        }
    }

    @Test
    void anExtensionNeverShortens() {
        Queue queue = queue();
        queue.send("held");
        try (Consumer consumer = queue.consume(options -> options.visibilityTimeout(Duration.ofHours(1)))) {
            Message held = consumer.poll(LIMIT).orElseThrow();
            assertEquals(Outcome.DONE, held.extend(Duration.ofSeconds(1)));
            for (Message message : queue.listMessages()) {
                assertFalse(message.vt().isBefore(held.vt()));
            }
        }
    }

    @Test
    void aSettleWhoseCallCannotBeMadeIsTold() throws Exception {
        AtomicBoolean fails = new AtomicBoolean();
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.builder()
                        .target(wire.target())
                        .metadata(() -> {
                            if (fails.get()) {
                                throw new IllegalStateException("there are no credentials");
                            }
                            return Map.of();
                        })
                        .build()) {
            Queue queue = queue(other);
            queue.sendBatch(List.of(1, 2));
            try (Consumer consumer = queue.consume()) {
                Message first = consumer.poll(LIMIT).orElseThrow();
                Message second = consumer.poll(LIMIT).orElseThrow();
                fails.set(true);
                wire.mend();
                assertThrows(PgmqException.class, () -> first.delete());
                fails.set(false);
                assertEquals(Outcome.DONE, second.delete());
            }
        }
    }

    @Test
    void aSettleAfterTheEndOfTheClientFails() throws Exception {
        PgmqClient other = PgmqClient.connect(TARGET);
        Queue queue = queue(other);
        queue.send("held");
        Message held = queue.consume().poll(LIMIT).orElseThrow();
        other.close();
        ExecutionException failure = assertThrows(
                ExecutionException.class, () -> held.deleteAsync().get(LIMIT.toSeconds(), TimeUnit.SECONDS));
        assertTrue(failure.getCause() instanceof PgmqException);
    }

    @Test
    void whatCameOverAnEarlierStreamIsExtendedToo() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.connect(wire.target())) {
            Queue queue = queue(other);
            queue.send("held");
            try (Consumer consumer = queue.consume(options -> options.visibilityTimeout(Duration.ofSeconds(20)))) {
                Message held = consumer.poll(LIMIT).orElseThrow();
                Instant until = held.vt();
                wire.mend();
                eventually(
                        "the message is extended over the next stream",
                        () -> client.queue(queue.name()).listMessages().stream()
                                .anyMatch(message -> message.vt().isAfter(until)));
                assertEquals(Outcome.DONE, held.delete());
            }
        }
    }

    @Test
    void handlersRunAtOnceAndEachMessageIsHandledOnce() throws Exception {
        Queue queue = queue();
        queue.sendBatch(IntStream.range(0, 500).boxed().toList());
        Set<Object> handled = ConcurrentHashMap.newKeySet();
        CountDownLatch together = new CountDownLatch(4);
        CountDownLatch all = new CountDownLatch(500);
        try (Consumer consumer = queue.handle(options -> options.concurrency(4), message -> {
            together.countDown();
            assertTrue(together.await(LIMIT.toSeconds(), TimeUnit.SECONDS));
            assertTrue(handled.add(message.message()));
            all.countDown();
        })) {
            assertTrue(all.await(LIMIT.toSeconds(), TimeUnit.SECONDS));
            consumer.stop();
        }
        assertEquals(500, handled.size());
        assertEquals(0, queue.metrics().queueLength());
    }

    @Test
    void whatAHandlerSettlesItselfIsNotSettledAgain() throws Exception {
        Queue queue = queue();
        queue.send("kept");
        CountDownLatch archived = new CountDownLatch(1);
        try (Consumer consumer = queue.handle(message -> {
            message.archive();
            archived.countDown();
            throw new IllegalStateException("after it has settled");
        })) {
            assertTrue(archived.await(LIMIT.toSeconds(), TimeUnit.SECONDS));
            consumer.stop();
        }
        assertEquals(1, queue.metrics(true).archiveLength().orElseThrow());
    }

    @Test
    void aHandlerThatIsRefusedItsSettleGivesTheMessageBack() throws Exception {
        Queue queue = queue();
        queue.send("poison");
        CountDownLatch deliveries = new CountDownLatch(2);
        try (Consumer consumer = queue.handle(options -> options.visibilityTimeout(Duration.ofHours(1)), message -> {
            deliveries.countDown();
            if (deliveries.getCount() > 0) {
                // There is no such queue.
                message.deadLetter("poison");
            }
        })) {
            assertTrue(deliveries.await(LIMIT.toSeconds(), TimeUnit.SECONDS));
            consumer.stop();
        }
    }

    @Test
    void whatCannotBeSettledComesBackAfterItsVisibilityTimeout() throws Exception {
        Queue queue = queue();
        queue.send("again");
        CountDownLatch deliveries = new CountDownLatch(2);
        try (Consumer consumer = queue.handle(options -> options.visibilityTimeout(Duration.ofSeconds(1)), message -> {
            deliveries.countDown();
            // Longer than the server takes, and nobody looks at what becomes of it.
            message.releaseAsync(Duration.ofHours(13));
        })) {
            assertTrue(deliveries.await(LIMIT.toSeconds(), TimeUnit.SECONDS));
            consumer.stop();
        }
    }

    @Test
    void aMessageThatNoRequestCanHoldHarmsNoOther() {
        Queue queue = queue();
        try (Producer producer = queue.producer()) {
            producer.send("first").join();
            List<CompletableFuture<SendResult>> sent = IntStream.range(0, 5)
                    .mapToObj(i -> producer.send(i == 2 ? "x".repeat(9 * 1024 * 1024) : i))
                    .toList();
            CompletionException failure = assertThrows(CompletionException.class, sent.get(2)::join);
            assertEquals("MESSAGE_TOO_LARGE", ((PgmqException) failure.getCause()).reason());
            assertFalse(((PgmqException) failure.getCause()).outcomeUnknown());
            producer.send("last").join();
            List.of(0, 1, 3, 4).forEach(i -> sent.get(i).join());
        }
        assertEquals(6, queue.metrics().queueLength());
    }

    @Test
    void aHandlerOfAMissingQueueEndsWithItsError() {
        try (Consumer consumer = client.queue("there_is_none").handle(message -> {})) {
            PgmqException failure = assertThrows(PgmqException.class, consumer::join);
            assertEquals("QUEUE_NOT_FOUND", failure.reason());
        }
    }

    @Test
    void manyThreadsShareAProducer() {
        Queue queue = queue();
        Set<Long> ids = ConcurrentHashMap.newKeySet();
        try (Producer producer = queue.producer(options -> options.maxInFlight(50))) {
            CompletableFuture<?>[] threads = IntStream.range(0, 8)
                    .mapToObj(thread -> CompletableFuture.runAsync(() -> {
                        for (int i = 0; i < 250; i++) {
                            producer.send(i).thenAccept(result -> ids.add(result.msgId()));
                        }
                    }))
                    .toArray(CompletableFuture[]::new);
            CompletableFuture.allOf(threads).join();
        }
        assertEquals(2_000, ids.size());
        assertEquals(2_000, queue.metrics().queueLength());
    }

    @Test
    void whatIsAttachedToAResultMayWaitForAnotherOne() throws Exception {
        Queue queue = queue();
        try (Producer producer = queue.producer()) {
            CompletableFuture<SendResult> second =
                    producer.send(1).thenApply(first -> producer.send(2).join());
            assertEquals(2, second.get(LIMIT.toSeconds(), TimeUnit.SECONDS).msgId());
        }
    }

    @Test
    void aKeyedMessageIsSentAgainAfterABrokenStream() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.connect(wire.target())) {
            Queue queue = queue(other);
            try (Producer producer = queue.producer(options -> options.idempotent())) {
                producer.send("first").join();
                CompletableFuture<SendResult> lost = loseTheAnswer(wire, producer, queue.name());
                assertTrue(lost.get(LIMIT.toSeconds(), TimeUnit.SECONDS).deduplicated());
            }
            assertEquals(2, client.queue(queue.name()).metrics().queueLength());
        }
    }

    @Test
    void anotherMessageFailsWithAnUnknownOutcome() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.connect(wire.target())) {
            Queue queue = queue(other);
            try (Producer producer = queue.producer()) {
                producer.send("first").join();
                CompletableFuture<SendResult> lost = loseTheAnswer(wire, producer, queue.name());
                CompletionException failure = assertThrows(CompletionException.class, lost::join);
                assertTrue(((PgmqException) failure.getCause()).outcomeUnknown());
                producer.send("third").get(LIMIT.toSeconds(), TimeUnit.SECONDS);
            }
            assertEquals(3, client.queue(queue.name()).metrics().queueLength());
        }
    }

    private CompletableFuture<SendResult> loseTheAnswer(Wire wire, Producer producer, String queue)
            throws InterruptedException {
        wire.swallowAnswers();
        CompletableFuture<SendResult> lost = producer.send("second");
        eventually("the message is stored", () -> client.queue(queue).metrics().queueLength() == 2);
        wire.mend();
        return lost;
    }

    @Test
    void whatWasNeverSentFailsWithTheDeadline() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.builder()
                        .target(wire.target())
                        .deadline(Duration.ofSeconds(1))
                        .build()) {
            Queue queue = queue(other);
            wire.refuse();
            try (Producer producer = queue.producer()) {
                CompletionException failure = assertThrows(
                        CompletionException.class, () -> producer.send("late").join());
                assertFalse(((PgmqException) failure.getCause()).outcomeUnknown());
            }
        }
    }
}

package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.Items;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.OutgoingMessage;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.QueuePolicy;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

class SettingsTest extends Scene {
    @Test
    void whatCannotBeIsRefusedBeforeAnythingBegins() {
        Queue queue = client.queue("never_made");
        List<Executable> words = List.of(
                () -> queue.handle(options -> options.concurrency(0), message -> {}),
                () -> queue.handle(options -> options.retryDelay(Duration.ofMillis(-1)), message -> {}),
                () -> queue.handle(options -> options.retryDelay(Duration.ofHours(13)), message -> {}),
                () -> queue.producer(options -> options.maxInFlight(0)),
                () -> client.withDeadline(Duration.ZERO),
                () -> PgmqClient.builder().deadline(Duration.ofSeconds(-1)),
                () -> PgmqClient.builder().name("ü\n"),
                () -> PgmqClient.builder().metadata(Map.of("Bad Key", "value")),
                () -> PgmqClient.builder().metadata(Map.of("key", "välue")),
                () -> OutgoingMessage.of(1).delay(Duration.ZERO).visibleAt(Instant.now()),
                () -> OutgoingMessage.of(1).visibleAt(Instant.now()).delay(Duration.ZERO),
                () -> queue.send("half \ud83d of a pair"),
                () -> queue.send(OutgoingMessage.of(1).headers(Map.of("key", "\ude00"))));
        for (Executable word : words) {
            assertThrows(IllegalArgumentException.class, word);
        }
    }

    @Test
    void aTargetIsRefusedWhereItHasNoPort() {
        for (String target : List.of(
                "",
                "localhost",
                "localhost:",
                "localhost:0",
                "localhost:99999",
                "dns:///localhost",
                "http://localhost:1",
                "::1")) {
            assertThrows(IllegalArgumentException.class, () -> PgmqClient.connect(target), target);
        }
        for (String target : List.of(
                "localhost:1",
                "[::1]:1",
                "dns:///localhost:65535",
                "dns:localhost:1",
                "dns://8.8.8.8/localhost:1",
                "unix:/x")) {
            PgmqClient.connect(target).close();
        }
    }

    @Test
    void aNameThatDoesNotExistLeavesNothingOpen() {
        try (PgmqClient other = PgmqClient.connect("nowhere.invalid:50051").withDeadline(Duration.ofSeconds(5))) {
            PgmqException failure = assertThrows(
                    PgmqException.class, () -> other.queue("orders").send(1));
            assertFalse(failure.outcomeUnknown());
        }
    }

    @Test
    void aDeadlineMayBeLongerThanAnyClockGoes() {
        PgmqClient patient = client.withDeadline(Duration.ofSeconds(Long.MAX_VALUE));
        Queue queue = queue(patient);
        queue.send(1);
        assertEquals(
                1, queue.read(options -> options.wait(Duration.ofSeconds(1))).size());
    }

    @Test
    void aNumberThatJsonDoesNotHaveIsRefused() {
        PgmqException failure = assertThrows(PgmqException.class, () -> queue().send(Map.of("total", Double.NaN)));
        assertEquals("INVALID_JSON", failure.reason());
        assertEquals("message", failure.field());
    }

    @Test
    void aMessageWhoseHandlerFailsComesAgainAfterADelayThatGrows() throws Exception {
        Queue queue = queue();
        Duration first = delayAfterAFailure(queue);
        assertTrue(first.toMillis() >= 750 && first.toMillis() < 6_000, first.toString());
        queue.setVisibilityTimeout(Items.ids(1), Duration.ZERO);
        queue.read().get(0).release(Duration.ZERO);
        queue.read().get(0).release(Duration.ZERO);
        Duration fourth = delayAfterAFailure(queue);
        assertTrue(fourth.toMillis() >= 6_350, fourth.toString());
    }

    @Test
    void theBackoffOfTheQueueGoesBefore() throws Exception {
        Queue queue = queue();
        queue.update(QueuePolicy.none().retryBackoff(Duration.ofSeconds(5), Duration.ofSeconds(5)));
        Duration delay = delayAfterAFailure(queue);
        assertTrue(delay.toMillis() >= 4_900, delay.toString());
    }

    /** How long a message stays invisible after a handler has failed on it once, by the database's clock. */
    private static Duration delayAfterAFailure(Queue queue) throws InterruptedException {
        if (queue.metrics().queueLength() == 0) {
            queue.send("fails");
        }
        Message[] seen = new Message[1];
        try (Consumer consumer = queue.handle(options -> options.visibilityTimeout(Duration.ofHours(1)), message -> {
            seen[0] = message;
            throw new IllegalStateException("it fails");
        })) {
            eventually("it is released", () -> seen[0] != null && vt(queue).isBefore(seen[0].vt()));
            consumer.stop();
        }
        return Duration.between(seen[0].vt().minus(Duration.ofHours(1)), vt(queue));
    }

    private static Instant vt(Queue queue) {
        return queue.listMessages().iterator().next().vt();
    }
}

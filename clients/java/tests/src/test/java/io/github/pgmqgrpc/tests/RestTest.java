package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.SendResult;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

/** By itself, because it takes its time. */
class RestTest extends Scene {
    @Test
    void aSharedStreamThatNobodyUsesEndsAndAnotherOneFollowsWhenItIsNeeded() throws Exception {
        Gate gate = new Gate();
        try (PgmqClient other =
                PgmqClient.builder().target(TARGET).interceptors(gate).build()) {
            Queue queue = queue(other);
            CompletableFuture<SendResult> lone = CompletableFuture.supplyAsync(() -> queue.send("lone"));
            eventually("a call is under way", () -> gate.called().contains("Send"));
            assertEquals(1, queue.send("first").msgId());
            assertEquals(2, queue.send("second").msgId());
            eventually("the stream ends", () -> gate.ended().contains("Produce OK"));
            assertEquals(3, queue.send("third").msgId());
            assertEquals(List.of("Send", "Produce", "Produce"), gate.called());
            gate.open();
            assertTrue(lone.get(LIMIT.toSeconds(), TimeUnit.SECONDS).msgId() > 3);
        }
    }
}

package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.Items;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.Outcome;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.v1.Begin;
import io.github.pgmqgrpc.v1.DeleteRequest;
import io.github.pgmqgrpc.v1.OpenTransactionRequest;
import io.github.pgmqgrpc.v1.OpenTransactionResponse;
import io.github.pgmqgrpc.v1.TransactionServiceGrpc;
import io.grpc.stub.StreamObserver;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.parallel.Execution;
import org.junit.jupiter.api.parallel.ExecutionMode;

/** Settling while somebody else has locked some of the messages. */
@Execution(ExecutionMode.CONCURRENT)
class SettlesTest extends Scene {
    private final CompletableFuture<Void> ended = new CompletableFuture<>();
    private volatile boolean isOver;
    private StreamObserver<OpenTransactionRequest> commands;

    @Test
    void ofSeveralMessagesSomeMayBeSettledWhereOneIsRefused() throws Exception {
        Queue queue = queue();
        queue.sendBatch(List.of(1, 2));
        lock(queue, List.of(2L));
        PgmqException several = assertThrows(PgmqException.class, () -> queue.delete(Items.ids(1, 2)));
        assertEquals("QUEUE_BUSY", several.reason());
        assertTrue(several.outcomeUnknown());
        PgmqException single = assertThrows(PgmqException.class, () -> queue.delete(Items.ids(2)));
        assertEquals("QUEUE_BUSY", single.reason());
        assertFalse(single.outcomeUnknown());
    }

    @Test
    void theRefusalOfOneDoesNotDecideAboutThoseThatAreSettledWithIt() throws Exception {
        Queue queue = queue();
        queue.sendBatch(IntStream.rangeClosed(1, 20).boxed().toList());
        // The first eight keep a command each waiting, so that the others go together.
        List<Long> locked = List.of(1L, 2L, 3L, 4L, 5L, 6L, 7L, 8L, 15L);
        try (Consumer consumer = queue.consume()) {
            List<Message> messages = new ArrayList<>();
            for (int i = 0; i < 20; i++) {
                messages.add(consumer.poll(LIMIT).orElseThrow());
            }
            lock(queue, locked);
            List<CompletableFuture<Outcome>> settled =
                    messages.stream().map(Message::deleteAsync).toList();
            for (int i = 0; i < 20; i++) {
                CompletableFuture<Outcome> outcome = settled.get(i);
                if (locked.contains(messages.get(i).msgId())) {
                    CompletionException thrown = assertThrows(CompletionException.class, outcome::join);
                    PgmqException failure = (PgmqException) thrown.getCause();
                    assertEquals("QUEUE_BUSY", failure.reason());
                    assertFalse(failure.outcomeUnknown());
                } else {
                    assertEquals(Outcome.DONE, outcome.join());
                }
            }
        }
        assertEquals(9, queue.metrics().queueLength());
    }

    /** Deletes messages in a transaction that stays open until it is rolled back after the test. */
    private void lock(Queue queue, List<Long> ids) throws Exception {
        CompletableFuture<Void> locked = new CompletableFuture<>();
        OpenTransactionRequest delete = OpenTransactionRequest.newBuilder()
                .setDelete(DeleteRequest.newBuilder().setQueue(queue.name()).addAllMsgIds(ids))
                .build();
        commands = TransactionServiceGrpc.newStub(client.raw()).openTransaction(new StreamObserver<>() {
            @Override
            public void onNext(OpenTransactionResponse reply) {
                if (reply.hasDelete()) {
                    locked.complete(null);
                }
                // A transaction that is idle for too long is ended by the server.
                CompletableFuture.delayedExecutor(500, TimeUnit.MILLISECONDS).execute(() -> next(delete));
            }

            @Override
            public void onError(Throwable failure) {
                locked.completeExceptionally(failure);
                ended.complete(null);
            }

            @Override
            public void onCompleted() {
                ended.complete(null);
            }
        });
        commands.onNext(OpenTransactionRequest.newBuilder()
                .setBegin(Begin.getDefaultInstance())
                .build());
        locked.get(LIMIT.toSeconds(), TimeUnit.SECONDS);
    }

    private void next(OpenTransactionRequest command) {
        if (isOver) {
            commands.onCompleted();
        } else {
            commands.onNext(command);
        }
    }

    @AfterEach
    void rollBack() throws Exception {
        isOver = true;
        ended.get(LIMIT.toSeconds(), TimeUnit.SECONDS);
    }
}

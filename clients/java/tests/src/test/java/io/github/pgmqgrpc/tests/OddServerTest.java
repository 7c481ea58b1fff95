package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Duration;
import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.Outcome;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Producer;
import io.github.pgmqgrpc.v1.CommandError;
import io.github.pgmqgrpc.v1.CommandResult;
import io.github.pgmqgrpc.v1.ConsumeRequest;
import io.github.pgmqgrpc.v1.ConsumeResponse;
import io.github.pgmqgrpc.v1.ErrorReason;
import io.github.pgmqgrpc.v1.ProduceFailure;
import io.github.pgmqgrpc.v1.ProduceRequest;
import io.github.pgmqgrpc.v1.ProduceResponse;
import io.github.pgmqgrpc.v1.ProduceStarted;
import io.github.pgmqgrpc.v1.QueueServiceGrpc.QueueServiceImplBase;
import io.github.pgmqgrpc.v1.SettleAction;
import io.github.pgmqgrpc.v1.StreamStarted;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiConsumer;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Behind a server that does what the real one does rarely, and not at a test's wish. */
class OddServerTest {
    /** How long a caller is asked to wait: longer than the client's own first pauses. */
    private static final int PAUSE_NANOS = 400_000_000;

    private final AtomicInteger frames = new AtomicInteger();
    private final AtomicInteger settles = new AtomicInteger();
    private final CountDownLatch consumed = new CountDownLatch(3);
    private volatile BiConsumer<ProduceRequest, StreamObserver<ProduceResponse>> answer;
    private Server server;
    private PgmqClient client;

    @BeforeEach
    void start() throws IOException {
        server = Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
                .addService(new Odd())
                .build()
                .start();
        client = PgmqClient.connect("127.0.0.1:" + server.getPort());
    }

    @AfterEach
    void end() {
        client.close();
        server.shutdownNow();
    }

    @Test
    void aStreamThatFallsSilentIsFollowedByAnotherEachTime() throws Exception {
        Consumer consumer = client.queue("orders").consume();
        assertTrue(consumed.await(Scene.LIMIT.toSeconds(), TimeUnit.SECONDS));
        consumer.stop();
    }

    @Test
    void anEndThatIsNotAnnouncedLeavesOpenWhatWasStored() {
        answer = (frame, replies) -> replies.onCompleted();
        try (Producer producer = client.queue("orders").producer()) {
            CompletionException failure = assertThrows(
                    CompletionException.class, () -> producer.send(1).join());
            PgmqException cause = (PgmqException) failure.getCause();
            assertEquals(Status.Code.UNAVAILABLE, cause.code());
            assertTrue(cause.outcomeUnknown());
        }
        assertEquals(1, frames.get());
    }

    @Test
    void aProducerSendsAgainWhatIsRefusedForTheMoment() {
        answer = (frame, replies) -> {
            ProduceResponse.Builder reply = ProduceResponse.newBuilder().setFirstSequence(frame.getFirstSequence());
            if (frames.get() == 1) {
                reply.addMsgIds(0).addFailures(ProduceFailure.newBuilder().setError(overloaded()));
            } else {
                reply.addMsgIds(7);
            }
            replies.onNext(reply.build());
        };
        try (Producer producer = client.queue("orders").producer()) {
            long begun = System.nanoTime();
            assertEquals(7, producer.send(1).join().msgId());
            assertTrue(System.nanoTime() - begun >= PAUSE_NANOS);
        }
        assertEquals(2, frames.get());
    }

    @Test
    void whatIsRefusedForTheMomentIsSettledAgainAfterThePauseThatTheServerAsksFor() {
        Consumer consumer = client.queue("orders").consume();
        Message message = consumer.poll(Scene.LIMIT).orElseThrow();
        long begun = System.nanoTime();
        assertEquals(Outcome.DONE, message.delete());
        assertTrue(System.nanoTime() - begun >= PAUSE_NANOS);
        assertEquals(2, settles.get());
        consumer.stop();
    }

    @Test
    void aProducerGivesUpAfterThreeRepetitions() {
        answer = (frame, replies) -> replies.onNext(ProduceResponse.newBuilder()
                .setFirstSequence(frame.getFirstSequence())
                .addMsgIds(0)
                .addFailures(ProduceFailure.newBuilder().setError(overloaded()))
                .build());
        try (Producer producer = client.queue("orders").producer()) {
            CompletionException failure = assertThrows(
                    CompletionException.class, () -> producer.send(1).join());
            PgmqException cause = (PgmqException) failure.getCause();
            assertEquals("OVERLOADED", cause.reason());
            assertEquals("of the stream", cause.requestId());
            assertEquals(
                    java.time.Duration.ofNanos(PAUSE_NANOS), cause.retryDelay().orElseThrow());
        }
        assertEquals(4, frames.get());
    }

    private static CommandError overloaded() {
        return CommandError.newBuilder()
                .setCode(Status.Code.UNAVAILABLE.value())
                .setReason(ErrorReason.ERROR_REASON_OVERLOADED)
                .setRequestId("of the stream")
                .setRetryDelay(Duration.newBuilder().setNanos(PAUSE_NANOS))
                .build();
    }

    private final class Odd extends QueueServiceImplBase {
        @Override
        public StreamObserver<ConsumeRequest> consume(StreamObserver<ConsumeResponse> replies) {
            consumed.countDown();
            replies.onNext(ConsumeResponse.newBuilder()
                    .setStarted(StreamStarted.newBuilder()
                            .setHeartbeatInterval(Duration.newBuilder().setNanos(200_000_000))
                            .setVisibilityTimeout(Duration.newBuilder().setSeconds(30))
                            .setMaxInFlight(100))
                    .addMessages(io.github.pgmqgrpc.v1.Message.newBuilder().setReceipt("receipt"))
                    .build());
            return new Commands<>(replies) {
                @Override
                public void onNext(ConsumeRequest command) {
                    if (command.getSettle().getAction() == SettleAction.SETTLE_ACTION_DELETE) {
                        CommandResult.Builder result =
                                CommandResult.newBuilder().setRequestId(command.getRequestId());
                        if (settles.incrementAndGet() == 1) {
                            result.setError(overloaded());
                        } else {
                            result.addResultsBuilder().setOutcome(io.github.pgmqgrpc.v1.Outcome.OUTCOME_DONE);
                        }
                        replies.onNext(ConsumeResponse.newBuilder()
                                .addCommandResults(result)
                                .build());
                    }
                }
            };
        }

        @Override
        public StreamObserver<ProduceRequest> produce(StreamObserver<ProduceResponse> replies) {
            replies.onNext(ProduceResponse.newBuilder()
                    .setStarted(ProduceStarted.newBuilder()
                            .setHeartbeatInterval(Duration.newBuilder().setSeconds(30))
                            .setMaxFrameMessages(100)
                            .setMaxFrameBytes(1024 * 1024))
                    .build());
            return new Commands<>(replies) {
                @Override
                public void onNext(ProduceRequest frame) {
                    frames.incrementAndGet();
                    answer.accept(frame, replies);
                }
            };
        }
    }

    private abstract static class Commands<Q, R> implements StreamObserver<Q> {
        private final StreamObserver<R> replies;

        Commands(StreamObserver<R> replies) {
            this.replies = replies;
        }

        @Override
        public void onError(Throwable failure) {}

        @Override
        public void onCompleted() {
            replies.onCompleted();
        }
    }
}

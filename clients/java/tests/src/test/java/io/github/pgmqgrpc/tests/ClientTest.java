package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.JsonCodec;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.OutgoingMessage;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.v1.GetServerInfoRequest;
import io.github.pgmqgrpc.v1.QueueServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.io.IOException;
import java.lang.reflect.Type;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.net.ServerSocket;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ClientTest extends Scene {
    record Order(int order, BigDecimal total) {}

    @Test
    void aBodyIsAnObjectOfTheApplication() {
        Queue queue = queue();
        queue.send(new Order(7, new BigDecimal("12.50")));
        Message message = queue.read().get(0);
        assertEquals(new Order(7, new BigDecimal("12.50")), message.message(Order.class));
        assertEquals(Map.of("order", 7, "total", new BigDecimal("12.50")), message.message());
    }

    @Test
    void numbersKeepTheirDigits() {
        Queue queue = queue();
        BigInteger large = new BigInteger("9".repeat(900));
        BigDecimal fine = new BigDecimal("0." + "1".repeat(900) + "0");
        queue.send(List.of(large, fine));
        assertEquals(List.of(large, fine), queue.read().get(0).message());
    }

    @Test
    void nullIsABody() {
        Queue queue = queue();
        queue.send(null);
        Message message = queue.read().get(0);
        assertNull(message.message());
        assertEquals("null", message.messageText());
    }

    @Test
    void theJsonCodecCanBeReplaced() {
        JsonCodec shouting = new JsonCodec() {
            @Override
            public String encode(Object value) {
                return "\"" + value.toString().toUpperCase(java.util.Locale.ROOT) + "\"";
            }

            @Override
            public Object decode(String text, Type type) {
                return "read " + text;
            }
        };
        try (PgmqClient other =
                PgmqClient.builder().target(TARGET).json(shouting).build()) {
            Queue queue = queue(other);
            queue.send("quiet");
            assertEquals("read \"QUIET\"", queue.read().get(0).message());
        }
    }

    @Test
    void interceptorsSeeEveryCallInTheirOrder() {
        ConcurrentLinkedQueue<String> seen = new ConcurrentLinkedQueue<>();
        try (PgmqClient other = PgmqClient.builder()
                .target(TARGET)
                .interceptors(noting("outer", seen), noting("inner", seen))
                .build()) {
            other.getServerInfo();
        }
        assertEquals(List.of("outer GetServerInfo", "inner GetServerInfo"), List.copyOf(seen));
    }

    private static ClientInterceptor noting(String name, ConcurrentLinkedQueue<String> seen) {
        return new ClientInterceptor() {
            @Override
            public <Q, R> ClientCall<Q, R> interceptCall(
                    MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
                seen.add(name + " " + method.getBareMethodName());
                return next.newCall(method, options);
            }
        };
    }

    @Test
    void metadataIsAskedForBeforeEachCall() {
        AtomicInteger calls = new AtomicInteger();
        try (PgmqClient other = PgmqClient.builder()
                .target(TARGET)
                .metadata(() -> Map.of("pgmq-queue", "call-" + calls.incrementAndGet()))
                .build()) {
            Queue queue = queue(other);
            PgmqException failure = assertThrows(PgmqException.class, () -> queue.send(1));
            assertEquals("METADATA_MISMATCH", failure.reason());
            assertEquals("queue", failure.field());
            assertThrows(PgmqException.class, queue::get);
        }
        assertEquals(2, calls.get());
    }

    @Test
    void theGeneratedStubsAreThere() {
        assertEquals(
                client.getServerInfo().serverVersion(),
                QueueServiceGrpc.newBlockingStub(client.raw())
                        .getServerInfo(GetServerInfoRequest.getDefaultInstance())
                        .getServerVersion());
    }

    @Test
    void aServerIsReachedOverAUnixSocket(@TempDir Path directory) throws IOException {
        Path socket = directory.resolve("pgmq.sock");
        try (UnixWire wire = new UnixWire(socket);
                PgmqClient other = PgmqClient.connect("unix:" + wire.path())) {
            Queue queue = queue(other);
            queue.send("over a socket");
            assertEquals("over a socket", queue.read().get(0).message());
        }
    }

    @Test
    void aCallThatHasNotLeftHasNotBeenApplied() throws IOException {
        String nobody;
        try (ServerSocket free = new ServerSocket(0)) {
            nobody = "127.0.0.1:" + free.getLocalPort();
        }
        try (PgmqClient other = PgmqClient.connect(nobody)) {
            PgmqException failure = assertThrows(
                    PgmqException.class, () -> other.queue("orders").send(1));
            assertEquals(Status.Code.UNAVAILABLE, failure.code());
            assertFalse(failure.outcomeUnknown());
            assertEquals("", failure.reason());
        }
    }

    @Test
    void aLostAnswerLeavesTheOutcomeUnknownAndNothingIsSentTwice() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.connect(wire.target())) {
            Queue queue = queue(other);
            queue.metrics();
            wire.swallowAnswers();
            Thread mending = mendOnceStored(wire, queue.name());
            PgmqException failure = assertThrows(PgmqException.class, () -> queue.send("unkeyed"));
            mending.join();
            assertEquals(Status.Code.UNAVAILABLE, failure.code());
            assertTrue(failure.outcomeUnknown());
            assertEquals(1, client.queue(queue.name()).metrics().totalMessages());
        }
    }

    @Test
    void anIdempotentSendIsRepeatedAndStoredOnce() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = PgmqClient.connect(wire.target())) {
            Queue queue = queue(other);
            queue.metrics();
            wire.swallowAnswers();
            Thread mending = mendOnceStored(wire, queue.name());
            assertTrue(queue.send(OutgoingMessage.of("keyed").idempotent()).deduplicated());
            mending.join();
            assertEquals(1, client.queue(queue.name()).metrics().queueLength());
        }
    }

    private Thread mendOnceStored(Wire wire, String queue) {
        Thread mending = new Thread(() -> {
            try {
                eventually(
                        "the message is stored",
                        () -> client.queue(queue).metrics().queueLength() == 1);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            wire.mend();
        });
        mending.start();
        return mending;
    }

    @Test
    void anInterruptedCallEndsAndKeepsTheInterruption() throws InterruptedException {
        Queue queue = queue();
        ConcurrentLinkedQueue<Boolean> interrupted = new ConcurrentLinkedQueue<>();
        Thread reader = new Thread(() -> {
            try {
                queue.read(options -> options.wait(Duration.ofSeconds(50)));
            } catch (PgmqException e) {
                interrupted.add(e.code() == Status.Code.CANCELLED
                        && Thread.currentThread().isInterrupted());
            }
        });
        reader.start();
        reader.interrupt();
        reader.join(LIMIT.toMillis());
        assertEquals(List.of(true), List.copyOf(interrupted));
    }
}

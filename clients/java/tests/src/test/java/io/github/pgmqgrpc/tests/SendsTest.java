package io.github.pgmqgrpc.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.OutgoingMessage;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.QueuePolicy;
import io.github.pgmqgrpc.SendResult;
import io.grpc.Status;
import java.io.IOException;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.parallel.Isolated;

/** What {@code queue.send} does when it is called by several threads at once. By itself, as it kills the server. */
@Isolated
class SendsTest extends Scene {
    private final ExecutorService threads = Executors.newCachedThreadPool();
    private final Gate gate = new Gate();

    @AfterEach
    void endThreads() {
        gate.open();
        threads.shutdownNow();
    }

    private PgmqClient gated(String target, Duration deadline) {
        return PgmqClient.builder()
                .target(target)
                .deadline(deadline)
                .interceptors(gate)
                .build();
    }

    /** A send that is a call of its own, and under way until the gate is opened. */
    private Future<SendResult> lone(Queue queue) throws InterruptedException {
        Future<SendResult> lone = threads.submit(() -> queue.send("lone"));
        eventually("a call is under way", () -> gate.called().contains("Send"));
        return lone;
    }

    private static <T> T result(Future<T> future) throws Exception {
        return future.get(LIMIT.toSeconds(), TimeUnit.SECONDS);
    }

    private static PgmqException failure(Future<?> future) {
        ExecutionException failure = assertThrows(ExecutionException.class, () -> result(future));
        return (PgmqException) failure.getCause();
    }

    @Test
    void oneThatIsAloneIsACallOfItsOwn() {
        gate.open();
        try (PgmqClient other = gated(TARGET, LIMIT)) {
            Queue queue = queue(other);
            assertEquals(1, queue.send("first").msgId());
            assertEquals(2, queue.send("second").msgId());
            assertEquals(List.of("Send", "Send"), gate.called());
        }
    }

    @Test
    void thoseThatRunAtOnceShareAStreamAndEachGetsItsOwnAnswer() throws Exception {
        try (PgmqClient other = gated(TARGET, LIMIT)) {
            Queue queue = queue(other);
            Future<SendResult> lone = lone(queue);
            List<Future<SendResult>> sent = IntStream.range(0, 200)
                    .mapToObj(i -> threads.submit(() -> queue.send(i)))
                    .toList();
            Map<Long, Object> bodies = new ConcurrentHashMap<>();
            for (int i = 0; i < sent.size(); i++) {
                bodies.put(result(sent.get(i)).msgId(), i);
            }
            gate.open();
            bodies.put(result(lone).msgId(), "lone");
            assertEquals(
                    bodies,
                    client.queue(queue.name()).listMessages().stream()
                            .collect(Collectors.toMap(Message::msgId, Message::message)));
            assertEquals(List.of("Send", "Produce"), gate.called());
        }
    }

    @Test
    void aBadOneGetsTheErrorThatItHasAloneAndHurtsNobody() throws Exception {
        try (PgmqClient other = gated(TARGET, LIMIT)) {
            Queue queue = queue(other);
            OutgoingMessage bad = OutgoingMessage.ofText("{oops}");
            PgmqException alone = assertThrows(
                    PgmqException.class, () -> client.queue(queue.name()).send(bad));
            Future<SendResult> lone = lone(queue);
            List<Future<SendResult>> good = IntStream.range(0, 50)
                    .mapToObj(i -> threads.submit(() -> queue.send(i)))
                    .toList();
            PgmqException shared = assertThrows(PgmqException.class, () -> queue.send(bad));
            assertEquals(alone.code(), shared.code());
            assertEquals("INVALID_JSON", shared.reason());
            assertEquals(alone.metadata(), shared.metadata());
            assertFalse(shared.outcomeUnknown());
            assertTrue(
                    List.of(shared.getStackTrace()).toString().contains(SendsTest.class.getName()),
                    "it tells who has called");
            for (Future<SendResult> future : good) {
                result(future);
            }
            gate.open();
            result(lone);
            assertEquals(51, client.queue(queue.name()).metrics().queueLength());
        }
    }

    @Test
    void whatAStreamCannotCarryGoesByItself() throws Exception {
        try (PgmqClient other = gated(TARGET, LIMIT)) {
            Queue queue = queue(other);
            OutgoingMessage huge = OutgoingMessage.of("x".repeat(9 * 1024 * 1024));
            Future<SendResult> lone = lone(queue);
            Future<SendResult> tooLarge = threads.submit(() -> queue.send(huge));
            eventually("it goes by itself", () -> gate.called().size() == 2);
            assertEquals(1, queue.send("small").msgId());
            gate.open();
            result(lone);
            assertEquals("MESSAGE_TOO_LARGE", failure(tooLarge).reason());
        }
    }

    @Test
    void aMissingQueueIsTheErrorOfItsOwnSendsOnly() throws Exception {
        try (PgmqClient other = gated(TARGET, LIMIT)) {
            Queue queue = queue(other);
            lone(queue);
            PgmqException failure = assertThrows(
                    PgmqException.class, () -> other.queue("there_is_none").send(1));
            assertEquals("QUEUE_NOT_FOUND", failure.reason());
            assertEquals(1, queue.send("good").msgId());
        }
    }

    @Test
    void oneThatIsInterruptedHarmsNoOther() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = gated(wire.target(), LIMIT)) {
            Queue queue = queue(other);
            lone(queue);
            queue.send("first");
            wire.holdAnswers();
            CompletableFuture<PgmqException> failure = new CompletableFuture<>();
            Thread interrupted = new Thread(() -> {
                failure.complete(assertThrows(PgmqException.class, () -> queue.send("interrupted")));
                assertTrue(Thread.currentThread().isInterrupted());
            });
            interrupted.start();
            Future<SendResult> second = threads.submit(() -> queue.send("second"));
            eventually(
                    "all are stored", () -> client.queue(queue.name()).metrics().queueLength() == 3);
            interrupted.interrupt();
            assertEquals(Status.Code.CANCELLED, result(failure).code());
            assertTrue(result(failure).outcomeUnknown());
            wire.letAnswersGo();
            result(second);
        }
    }

    @Test
    void oneThatIsNotAnsweredInTimeFailsWithTheDeadline() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = gated(wire.target(), LIMIT)) {
            Queue queue = queue(other);
            lone(queue);
            queue.send("first");
            wire.holdAnswers();
            Queue hasty = other.withDeadline(Duration.ofMillis(500)).queue(queue.name());
            Future<SendResult> patient = threads.submit(() -> queue.send("patient"));
            PgmqException failure = assertThrows(PgmqException.class, () -> hasty.send("late"));
            assertEquals(Status.Code.DEADLINE_EXCEEDED, failure.code());
            assertTrue(failure.outcomeUnknown());
            wire.letAnswersGo();
            result(patient);
        }
    }

    @Test
    void whereNobodyIsThoseThatShareAreToldAsTheLoneOneIs() throws Exception {
        String nobody;
        try (ServerSocket free = new ServerSocket(0)) {
            nobody = "127.0.0.1:" + free.getLocalPort();
        }
        try (PgmqClient other = gated(nobody, Duration.ofHours(1))) {
            Future<SendResult> lone = lone(other.queue("orders"));
            Future<SendResult> shared =
                    threads.submit(() -> other.queue("orders").send(1));
            gate.open();
            for (PgmqException failure : List.of(failure(lone), failure(shared))) {
                assertEquals(Status.Code.UNAVAILABLE, failure.code());
                assertFalse(failure.outcomeUnknown());
            }
        }
    }

    @Test
    void whereNobodyIsAnyMoreThoseThatShareAreToldBeforeTheirDeadline() throws Exception {
        try (Wire wire = new Wire();
                PgmqClient other = gated(wire.target(), Duration.ofHours(1))) {
            Queue queue = queue(other);
            lone(queue);
            queue.send("first");
            wire.refuse();
            // This one may be under way already when the connection breaks.
            assertEquals(
                    Status.Code.UNAVAILABLE,
                    failure(threads.submit(() -> queue.send("second"))).code());
            PgmqException failure = failure(threads.submit(() -> queue.send("third")));
            assertEquals(Status.Code.UNAVAILABLE, failure.code());
            assertFalse(failure.outcomeUnknown());
            wire.mend();
            eventually("it is sent when the server is there again", () -> isSent(queue));
        }
    }

    private static boolean isSent(Queue queue) {
        try {
            return queue.send("fourth").msgId() > 0;
        } catch (PgmqException e) {
            return false;
        }
    }

    @Test
    void closingTheClientWaitsForWhatIsUnderWay() throws Exception {
        try (Wire wire = new Wire()) {
            PgmqClient other = gated(wire.target(), LIMIT);
            Queue queue = queue(other);
            Future<SendResult> lone = lone(queue);
            queue.send("first");
            wire.holdAnswers();
            Future<SendResult> second = threads.submit(() -> queue.send("second"));
            Future<SendResult> third = threads.submit(() -> queue.send("third"));
            gate.open();
            eventually(
                    "all are stored", () -> client.queue(queue.name()).metrics().queueLength() == 4);
            Future<?> closing = threads.submit(other::close);
            assertThrows(TimeoutException.class, () -> closing.get(300, TimeUnit.MILLISECONDS));
            wire.letAnswersGo();
            for (Future<SendResult> sent : List.of(lone, second, third)) {
                result(sent);
            }
            result(closing);
        }
    }

    @Test
    void aServerThatIsKilledLeavesNobodyWithAWrongAnswer() throws Exception {
        Queue queue = queue();
        queue.update(QueuePolicy.none().deduplicationWindow(Duration.ofHours(1)));
        Set<String> stored = ConcurrentHashMap.newKeySet();
        Set<String> unknown = ConcurrentHashMap.newKeySet();
        Set<String> keyed = ConcurrentHashMap.newKeySet();
        List<Future<?>> senders = IntStream.range(0, 16)
                .<Future<?>>mapToObj(thread -> threads.submit(() -> {
                    for (int i = 0; i < 100 || keyed.size() < 400; i++) {
                        String body = thread + "-" + i;
                        if (thread % 2 == 0) {
                            sendUntilStored(queue, body);
                            keyed.add(body);
                        } else {
                            send(queue, body, stored, unknown);
                        }
                    }
                }))
                .toList();
        eventually("some are stored", () -> keyed.size() > 100);
        killServer();
        for (Future<?> sender : senders) {
            result(sender);
        }
        Map<Object, Long> came = queue.listMessages(request -> request.setPageSize(1_000)).stream()
                .collect(Collectors.groupingBy(Message::message, Collectors.counting()));
        assertEquals(Set.of(1L), Set.copyOf(came.values()), "none is stored twice");
        Set<Object> certain = Set.copyOf(came.keySet());
        assertTrue(certain.containsAll(keyed));
        assertTrue(certain.containsAll(stored));
        came.keySet().removeAll(keyed);
        came.keySet().removeAll(stored);
        assertTrue(unknown.containsAll(came.keySet()), "what else is stored was told to be unknown");
    }

    private static void sendUntilStored(Queue queue, String body) {
        while (true) {
            try {
                queue.send(OutgoingMessage.of(body).deduplicationId(body));
                return;
            } catch (PgmqException e) {
                assertEquals(Status.Code.UNAVAILABLE, e.code());
            }
        }
    }

    private static void send(Queue queue, String body, Set<String> stored, Set<String> unknown) {
        try {
            queue.send(body);
            stored.add(body);
        } catch (PgmqException e) {
            if (e.outcomeUnknown()) {
                unknown.add(body);
            }
        }
    }

    /** The server is started again by whoever has started it. */
    private static void killServer() throws IOException {
        String pid = Files.readString(Path.of(System.getenv("PGMQ_GRPC_SERVER_PID_FILE")));
        ProcessHandle.of(Long.parseLong(pid.strip())).orElseThrow().destroyForcibly();
    }
}

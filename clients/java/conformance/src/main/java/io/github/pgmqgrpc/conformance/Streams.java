package io.github.pgmqgrpc.conformance;

import io.github.pgmqgrpc.ConsumeOptions;
import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.Ordering;
import io.github.pgmqgrpc.OutgoingMessage;
import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Producer;
import io.github.pgmqgrpc.QueueEvent;
import io.github.pgmqgrpc.SendResult;
import io.github.pgmqgrpc.Watcher;
import io.github.pgmqgrpc.v1.Begin;
import io.github.pgmqgrpc.v1.DeleteRequest;
import io.github.pgmqgrpc.v1.OpenTransactionRequest;
import io.github.pgmqgrpc.v1.OpenTransactionResponse;
import io.github.pgmqgrpc.v1.ReadBatchRequest;
import io.github.pgmqgrpc.v1.TransactionServiceGrpc;
import io.grpc.Context;
import io.grpc.stub.StreamObserver;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** Words of streams and of the surroundings. */
final class Streams {
    private static String ended = "";

    private final PgmqClient client;
    private final List<AutoCloseable> opened;

    Streams(PgmqClient client, List<AutoCloseable> opened) {
        this.client = client;
        this.opened = opened;
    }

    Object perform(String word, Arguments with) throws Exception {
        return switch (word) {
            case "consume" -> keep(client.queue(with.text("queue")).consume(options -> consume(options, with)));
            case "take" -> {
                Consumer consumer = (Consumer) with.get("consumer");
                yield gather(with, consumer::poll);
            }
            case "stop" -> Words.nothing(() -> ((Consumer) with.get("consumer")).close());
            case "handle" -> handle(with);
            case "watch" -> keep(client.watch(with.list("queues").toArray(String[]::new)));
            case "events" -> {
                Watcher watcher = (Watcher) with.get("watcher");
                yield gather(with, watcher::poll).stream().map(Streams::event).toList();
            }
            case "producer" -> keep(producer(with));
            case "produce" -> produce(with);
            case "close" -> Words.nothing(() -> ((Producer) with.get("producer")).close());
            case "hold" -> {
                hold(with.text("queue"), with.list("msg_ids"));
                yield null;
            }
            case "restart_server" -> Words.nothing(() -> restart(with.flag("kill")));
            case "wait_for_server" -> Words.nothing(this::waitForServer);
            case "wait" -> Words.nothing(() -> pause(with.span("seconds", null)));
            default -> throw new Failure("unknown word " + word);
        };
    }

    private <T extends AutoCloseable> T keep(T stream) {
        opened.add(stream);
        return stream;
    }

    private static ConsumeOptions consume(ConsumeOptions options, Arguments with) {
        with.with("max_in_flight", given -> options.maxInFlight(given.number("max_in_flight", 0)));
        with.with("visibility_timeout", given -> options.visibilityTimeout(given.span("visibility_timeout", null)));
        with.with("ordering", given -> options.ordering(given.word("ordering", Ordering.class)));
        with.with("conditional", given -> options.conditional(given.get("conditional")));
        with.with("auto_extend", given -> options.autoExtend(given.flag("auto_extend")));
        return options;
    }

    private static <T> List<T> gather(Arguments with, Function<Duration, Optional<T>> poll) {
        List<T> came = new ArrayList<>();
        int count = with.number("count", 1);
        long deadline =
                System.nanoTime() + with.span("within", Duration.ofSeconds(10)).toNanos();
        while (came.size() < count) {
            Optional<T> next = poll.apply(Duration.ofNanos(Math.max(0, deadline - System.nanoTime())));
            if (next.isEmpty()) {
                break;
            }
            came.add(next.get());
        }
        return came;
    }

    private static Map<String, Object> event(Object event) {
        QueueEvent noticed = (QueueEvent) event;
        return Map.of("queue", noticed.queue(), "kind", noticed.kind());
    }

    private Object handle(Arguments with) throws Exception {
        int successes = with.number("count", Integer.MAX_VALUE);
        int most = with.number("deliveries", Integer.MAX_VALUE);
        int failFirst = with.number("fail_first", 0);
        String action = with.text("action", "delete");
        int concurrency = with.number("concurrency", 1);
        List<Object> deliveries = Collections.synchronizedList(new ArrayList<>());
        Map<Long, Integer> tries = new ConcurrentHashMap<>();
        int[] succeeded = {0};
        CompletableFuture<Consumer> started = new CompletableFuture<>();
        Consumer consumer = client.queue(with.text("queue"))
                .handle(
                        options -> {
                            options.concurrency(concurrency).retryDelay(with.span("retry_delay", null));
                            return "archive".equals(action)
                                    ? consume(options, with).archive()
                                    : consume(options, with);
                        },
                        message -> {
                            synchronized (deliveries) {
                                deliveries.add(message.message());
                                boolean fails = tries.merge(message.msgId(), 1, Integer::sum) <= failFirst;
                                succeeded[0] += fails ? 0 : 1;
                                if (succeeded[0] >= successes || deliveries.size() >= most) {
                                    started.join().stop();
                                }
                                if (fails) {
                                    throw new IllegalStateException("as the case wants it");
                                }
                            }
                        });
        started.complete(consumer);
        keep(consumer).join();
        consumer.close();
        return Map.of("deliveries", List.copyOf(deliveries));
    }

    private Producer producer(Arguments with) {
        boolean idempotent = with.flag("idempotent");
        return client.queue(with.text("queue")).producer(options -> idempotent ? options.idempotent() : options);
    }

    private Object produce(Arguments with) {
        Producer producer = with.has("producer") ? (Producer) with.get("producer") : keep(producer(with));
        List<CompletableFuture<SendResult>> sent = new ArrayList<>();
        for (OutgoingMessage message : Words.messages(with)) {
            sent.add(producer.send(message));
        }
        List<Object> results = new ArrayList<>();
        for (CompletableFuture<SendResult> one : sent) {
            try {
                results.add(one.join());
            } catch (CompletionException e) {
                Map<String, Object> failed = new HashMap<>();
                failed.put("error", (PgmqException) e.getCause());
                results.add(failed);
            }
        }
        return results;
    }

    /** Locks messages by a transaction that stays open until the end of the case. */
    private void hold(String queue, List<?> ids) throws Exception {
        CountDownLatch replies = new CountDownLatch(2);
        Context.CancellableContext context = Context.current().withCancellation();
        opened.add(() -> context.cancel(null));
        context.run(() -> {
            StreamObserver<OpenTransactionRequest> commands = TransactionServiceGrpc.newStub(client.raw())
                    .openTransaction(new StreamObserver<>() {
                        @Override
                        public void onNext(OpenTransactionResponse reply) {
                            replies.countDown();
                        }

                        @Override
                        public void onError(Throwable failure) {}

                        @Override
                        public void onCompleted() {}
                    });
            OpenTransactionRequest.Builder command = OpenTransactionRequest.newBuilder();
            commands.onNext(command.setBegin(Begin.getDefaultInstance()).build());
            DeleteRequest.Builder delete = DeleteRequest.newBuilder().setQueue(queue);
            ids.forEach(id -> delete.addMsgIds(((Number) id).longValue()));
            commands.onNext(command.setDelete(delete).build());
            // While it waits for a message, it is not idle.
            ReadBatchRequest.Builder read = ReadBatchRequest.newBuilder().setQueue(queue);
            read.getWaitBuilder().setSeconds(40);
            commands.onNext(command.setReadBatch(read).build());
        });
        if (!replies.await(20, TimeUnit.SECONDS)) {
            throw new Failure("the messages could not be held");
        }
    }

    private static void restart(boolean kill) {
        ended = pid();
        ProcessHandle server = ProcessHandle.of(Long.parseLong(ended)).orElseThrow();
        boolean asked = kill ? server.destroyForcibly() : server.destroy();
        if (!asked) {
            throw new Failure("the server cannot be ended");
        }
    }

    private void waitForServer() {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
        while (System.nanoTime() < deadline) {
            if (!pid().isEmpty() && !pid().equals(ended) && answers()) {
                return;
            }
            pause(Duration.ofMillis(50));
        }
        throw new Failure("the server has not come back");
    }

    private boolean answers() {
        try {
            client.withDeadline(Duration.ofSeconds(1)).getServerInfo();
            return true;
        } catch (PgmqException e) {
            return false;
        }
    }

    private static String pid() {
        try {
            return Files.readString(Path.of(System.getenv("PGMQ_GRPC_SERVER_PID_FILE")))
                    .strip();
        } catch (java.io.IOException e) {
            throw new java.io.UncheckedIOException(e);
        }
    }

    private static void pause(Duration span) {
        try {
            TimeUnit.NANOSECONDS.sleep(span.toNanos());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new Failure("interrupted");
        }
    }
}

package io.github.pgmqgrpc.tests;

import io.github.pgmqgrpc.Consumer;
import io.github.pgmqgrpc.PgmqClient;
import java.time.Duration;

/** A worker whose handler ends the process, and whose shutdown hook closes the consumer. */
final class Exiting {
    static final int STATUS = 3;

    private Exiting() {}

    public static void main(String[] arguments) {
        // Nobody could wait for a whole deadline.
        PgmqClient client = PgmqClient.builder().deadline(Duration.ofDays(1)).build();
        Consumer consumer = client.queue(arguments[0]).handle(message -> System.exit(STATUS));
        Runtime.getRuntime().addShutdownHook(new Thread(consumer::close));
        consumer.join();
    }
}

package io.github.pgmqgrpc;

import io.grpc.CallCredentials;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.TlsChannelCredentials;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadFactory;
import java.util.function.Supplier;

/** Settings of a client. */
public final class ClientBuilder {
    private static final int LARGEST_REPLY = 8 * 1024 * 1024;
    private static final int LARGEST_METADATA = 64 * 1024;
    private static final Duration LONGEST_DEADLINE = Duration.ofDays(36_500);
    private static final String NAME = "pgmq-client";

    private String target;
    private ChannelCredentials credentials = InsecureChannelCredentials.create();
    private CallCredentials callCredentials;
    private Supplier<Map<String, String>> metadata = Map::of;
    private String name;
    private Duration deadline;
    private JsonCodec json;
    private final List<ClientInterceptor> interceptors = new ArrayList<>();

    ClientBuilder() {}

    /**
     * Where the server is.
     *
     * @param address {@code host:port}, {@code unix:/path} or {@code dns:///name:port}
     * @return this
     */
    public ClientBuilder target(String address) {
        target = address == null ? null : Target.checked(address);
        return this;
    }

    /**
     * Encrypts, and trusts the system's roots.
     *
     * @return this
     */
    public ClientBuilder tls() {
        return tls(TlsChannelCredentials.create());
    }

    /**
     * Encrypts as gRPC's own credentials say, such as {@code
     * TlsChannelCredentials.newBuilder().trustManager(ca).keyManager(certificate, key).build()}.
     *
     * @param channelCredentials the credentials
     * @return this
     */
    public ClientBuilder tls(ChannelCredentials channelCredentials) {
        credentials = channelCredentials;
        return this;
    }

    /**
     * Metadata of each call.
     *
     * @param values names and values, such as {@code Map.of("authorization", "Bearer " + token)}
     * @return this
     */
    public ClientBuilder metadata(Map<String, String> values) {
        Map<String, String> fixed = Map.copyOf(values);
        fixed.forEach((header, value) -> put(new Metadata(), header, value));
        return metadata(() -> fixed);
    }

    /**
     * Metadata of each call, asked for before it.
     *
     * @param values gives names and values; it must not block for long
     * @return this
     */
    public ClientBuilder metadata(Supplier<Map<String, String>> values) {
        metadata = values;
        return this;
    }

    /**
     * Credentials of each call, as gRPC has them.
     *
     * @param values the credentials, which may be fetched without blocking
     * @return this
     */
    public ClientBuilder callCredentials(CallCredentials values) {
        callCredentials = values;
        return this;
    }

    /**
     * The name that this client shows in the server's log and in {@link PgmqClient#listClients}.
     *
     * @param clientName at most 128 bytes of printable ASCII
     * @return this
     */
    public ClientBuilder name(String clientName) {
        if (clientName != null) {
            put(new Metadata(), NAME, clientName);
        }
        name = clientName;
        return this;
    }

    /**
     * The deadline of unary calls.
     *
     * @param span above 0; 30 seconds by default
     * @return this
     */
    public ClientBuilder deadline(Duration span) {
        deadline = span == null ? null : checked(span);
        return this;
    }

    /**
     * What turns bodies and headers into JSON text and back.
     *
     * @param codec a {@link JacksonCodec} by default
     * @return this
     */
    public ClientBuilder json(JsonCodec codec) {
        json = codec;
        return this;
    }

    /**
     * Adds interceptors, such as OpenTelemetry's.
     *
     * @param added the interceptors; the first is the outermost
     * @return this
     */
    public ClientBuilder interceptors(ClientInterceptor... added) {
        interceptors.addAll(List.of(added));
        return this;
    }

    /**
     * Makes the client. Nothing is connected before its first call.
     *
     * @return the client
     */
    public PgmqClient build() {
        ExecutorService executor = Executors.newCachedThreadPool(threads("pgmq-grpc"));
        String address = address();
        ManagedChannelBuilder<?> transport = Grpc.newChannelBuilder(address, credentials)
                .executor(executor)
                .defaultLoadBalancingPolicy("round_robin")
                .maxInboundMessageSize(LARGEST_REPLY)
                .maxInboundMetadataSize(LARGEST_METADATA);
        if (address.startsWith("unix:")) {
            // The path of a socket, which would be taken otherwise, is no authority of HTTP/2.
            transport.overrideAuthority("localhost");
        }
        ManagedChannel opened = transport.build();
        // The last one in the list is called first.
        List<ClientInterceptor> chain = new ArrayList<>(interceptors);
        Collections.reverse(chain);
        chain.add(0, new Attach());
        Channel channel = ClientInterceptors.intercept(opened, chain);
        Connection connection = new Connection(
                opened,
                channel,
                json == null ? new JacksonCodec() : json,
                executor,
                Executors.newSingleThreadScheduledExecutor(threads("pgmq-grpc-timer")));
        return new PgmqClient(connection, deadline == null ? Duration.ofSeconds(30) : deadline, deadline == null);
    }

    private String address() {
        if (target != null) {
            return target;
        }
        String named = System.getenv("PGMQ_GRPC_TARGET");
        return named == null || named.isEmpty() ? "127.0.0.1:50051" : Target.checked(named);
    }

    /** Refuses what is no deadline, and cuts what is longer than any clock of Java's goes. */
    static Duration checked(Duration deadline) {
        if (deadline.isNegative() || deadline.isZero()) {
            throw new IllegalArgumentException("a deadline is above 0");
        }
        return deadline.compareTo(LONGEST_DEADLINE) > 0 ? LONGEST_DEADLINE : deadline;
    }

    /** Refuses what gRPC would not send, or not as it is. */
    private static void put(Metadata headers, String header, String value) {
        if (!value.chars().allMatch(c -> c >= ' ' && c <= '~')) {
            throw new IllegalArgumentException(header + " is not printable ASCII, as metadata has to be");
        }
        headers.put(Metadata.Key.of(header, Metadata.ASCII_STRING_MARSHALLER), value);
    }

    /** Threads that do not keep a process alive. */
    private static ThreadFactory threads(String name) {
        return work -> {
            Thread thread = new Thread(work, name);
            thread.setDaemon(true);
            return thread;
        };
    }

    /** Attaches metadata and credentials to each call. */
    private final class Attach implements ClientInterceptor {
        private final Supplier<Map<String, String>> values = metadata;
        private final String client = name;
        private final CallCredentials perCall = callCredentials;

        @Override
        public <Q, R> ClientCall<Q, R> interceptCall(MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
            CallOptions attached = perCall == null ? options : options.withCallCredentials(perCall);
            return new SimpleForwardingClientCall<>(next.newCall(method, attached)) {
                @Override
                public void start(Listener<R> listener, Metadata headers) {
                    if (client != null) {
                        put(headers, NAME, client);
                    }
                    values.get().forEach((header, value) -> put(headers, header, value));
                    super.start(listener, headers);
                }
            };
        }
    }
}

package io.github.pgmqgrpc;

import java.time.Instant;

/**
 * A caller of the servers, in one role at one queue.
 *
 * @param name how it calls itself
 * @param role what it does
 * @param queue at which queue
 * @param address where it calls from
 * @param replica which server it calls
 * @param inFlight how many messages of its streams are unsettled
 * @param since since when
 * @param lastSeen when it has shown itself last
 */
public record ClientInfo(
        String name,
        Role role,
        String queue,
        String address,
        String replica,
        int inFlight,
        Instant since,
        Instant lastSeen) {
    /** What a caller does. */
    public enum Role {
        /** Something that this client does not know. */
        UNSPECIFIED,
        /** It sends. */
        PRODUCER,
        /** It reads and settles. */
        CONSUMER
    }

    static ClientInfo of(io.github.pgmqgrpc.v1.Client client) {
        return new ClientInfo(
                client.getName(),
                Convert.word(Role.class, "CLIENT_ROLE_", client.getRole()),
                client.getQueue(),
                client.getAddress(),
                client.getReplica(),
                client.getInFlight(),
                Convert.instant(client.getSince()),
                Convert.instant(client.getLastSeen()));
    }
}

package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.GetServerInfoResponse;
import io.github.pgmqgrpc.v1.ServerState;
import java.util.List;

/**
 * What a server is, and what works there.
 *
 * @param serverVersion the version of the server
 * @param replica the name of the replica that answered
 * @param pgmqVersion the version of pgmq in the database; empty when it is missing
 * @param pgmqInstalledBy how pgmq came into the database: {@code extension}, {@code sql} or {@code unknown}
 * @param postgresVersion the version of Postgres
 * @param capabilities what works, as the words of the contract
 * @param state what this replica has to do at the moment, as the contract has it
 */
public record ServerInfo(
        String serverVersion,
        String replica,
        String pgmqVersion,
        String pgmqInstalledBy,
        String postgresVersion,
        List<String> capabilities,
        ServerState state) {
    static ServerInfo of(GetServerInfoResponse response) {
        return new ServerInfo(
                response.getServerVersion(),
                response.getReplica(),
                response.getPgmqVersion(),
                response.getPgmqInstalledBy(),
                response.getPostgresVersion(),
                List.copyOf(response.getCapabilitiesList()),
                response.getState());
    }
}

/**
 * The client of pgmq-grpc: PGMQ, the message queue on Postgres, over gRPC. Begin with {@link
 * io.github.pgmqgrpc.PgmqClient}.
 */
package io.github.pgmqgrpc;

package io.github.pgmqgrpc;

/**
 * How many messages a replay, a redrive or a deletion from an archive has moved.
 *
 * @param count the number
 * @param more whether more may be there that match
 */
public record MoveResult(long count, boolean more) {}

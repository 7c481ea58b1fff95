package io.github.pgmqgrpc;

/**
 * What became of a queue that was to be created.
 *
 * @param queue the queue as it is now
 * @param created whether this call has made it; false if it was there before
 */
public record CreateResult(QueueInfo queue, boolean created) {}

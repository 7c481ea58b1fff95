package io.github.pgmqgrpc;

import java.time.Instant;

/**
 * A pattern that is bound to a queue.
 *
 * @param pattern the pattern
 * @param queue the queue that receives the copies
 * @param boundAt when it was bound
 * @param compiledRegex the regular expression that pgmq makes of the pattern
 */
public record TopicBinding(String pattern, String queue, Instant boundAt, String compiledRegex) {
    static TopicBinding of(io.github.pgmqgrpc.v1.TopicBinding binding) {
        return new TopicBinding(
                binding.getPattern(),
                binding.getQueue(),
                Convert.instant(binding.getBoundAt()),
                binding.getCompiledRegex());
    }
}

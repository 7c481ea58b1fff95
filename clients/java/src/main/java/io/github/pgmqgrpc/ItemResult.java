package io.github.pgmqgrpc;

import java.time.Instant;
import java.util.Optional;

/**
 * What a settling call did to one message.
 *
 * @param outcome what was done
 * @param vt when the message becomes visible now, where that was changed
 */
public record ItemResult(Outcome outcome, Optional<Instant> vt) {
    static ItemResult of(io.github.pgmqgrpc.v1.ItemResult result) {
        return new ItemResult(
                Convert.word(Outcome.class, "OUTCOME_", result.getOutcome()),
                result.hasVt() ? Optional.of(Convert.instant(result.getVt())) : Optional.empty());
    }
}

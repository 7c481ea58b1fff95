package io.github.pgmqgrpc;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.pgmqgrpc.v1.CommandError;
import io.github.pgmqgrpc.v1.ErrorReason;
import io.grpc.Status;
import org.junit.jupiter.api.Test;

class NewReasonTest {
    @Test
    void aReasonThatIsNewerThanTheClientIsJudgedByItsCode() {
        PgmqException passing = PgmqException.of(CommandError.newBuilder()
                .setCode(Status.Code.UNAVAILABLE.value())
                .setReasonValue(9_999)
                .build());
        assertEquals("9999", passing.reason());
        assertTrue(passing.outcomeUnknown());
        assertTrue(PgmqException.leavesOpen("ONE_OF_TOMORROW", Status.Code.UNAVAILABLE));
        assertFalse(PgmqException.leavesOpen("ONE_OF_TOMORROW", Status.Code.NOT_FOUND));
    }

    @Test
    void aReasonThatIsKnownSaysItItself() {
        PgmqException refused = PgmqException.of(CommandError.newBuilder()
                .setCode(Status.Code.UNAVAILABLE.value())
                .setReason(ErrorReason.ERROR_REASON_OVERLOADED)
                .build());
        assertFalse(refused.outcomeUnknown());
        assertTrue(PgmqException.leavesOpen("OUTCOME_UNKNOWN_RETRY_SAFE", Status.Code.UNAVAILABLE));
    }
}

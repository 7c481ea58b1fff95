package io.github.pgmqgrpc;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RequestInfo;
import com.google.rpc.RetryInfo;
import io.github.pgmqgrpc.v1.CommandError;
import io.github.pgmqgrpc.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.io.Serializable;
import java.time.Duration;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * A call that has failed. Programs decide by {@link #code()} and {@link #reason()}; the text is for people.
 *
 * <p>{@link #outcomeUnknown()} tells whether the call may have been applied all the same.
 */
public final class PgmqException extends RuntimeException {
    private static final long serialVersionUID = 1;

    private static final String DOMAIN = "pgmq.v1";
    private static final Metadata.Key<String> REQUEST_ID = ascii("x-request-id");
    private static final Metadata.Key<String> PUSHBACK = ascii("grpc-retry-pushback-ms");

    /** Reasons after which even the server does not know what was applied. */
    private static final Set<String> UNKNOWN_REASONS =
            Set.of("OUTCOME_UNKNOWN", "OUTCOME_UNKNOWN_RETRY_SAFE", "DEADLINE_EXCEEDED", "INTERNAL");

    private static final Set<String> KNOWN_REASONS = Stream.of(ErrorReason.values())
            .filter(reason -> reason != ErrorReason.UNRECOGNIZED)
            .map(PgmqException::name)
            .collect(Collectors.toUnmodifiableSet());

    /** Codes that say nothing about what was applied, where the reason is one that this client does not know. */
    private static final Set<Status.Code> UNKNOWN_CODES = Set.of(
            Status.Code.UNKNOWN,
            Status.Code.INTERNAL,
            Status.Code.DEADLINE_EXCEEDED,
            Status.Code.UNAVAILABLE,
            Status.Code.CANCELLED,
            Status.Code.DATA_LOSS);

    /** Reasons with which some of several messages may have been settled. */
    private static final Set<String> PARTIAL_REASONS = Set.of("QUEUE_BUSY", "REFUSED_BY_DATABASE");

    /** The code of gRPC. */
    private final Status.Code code;
    /** What the server has told. */
    private final Facts facts;
    /** Whether the call may have been applied. */
    private final boolean outcomeUnknown;

    private PgmqException(Status status, Facts facts, boolean outcomeUnknown) {
        super(text(status, facts), status.getCause());
        this.code = status.getCode();
        this.facts = facts;
        this.outcomeUnknown = outcomeUnknown;
    }

    private PgmqException(PgmqException same, boolean outcomeUnknown) {
        super(same.getMessage(), same);
        this.code = same.code;
        this.facts = same.facts;
        this.outcomeUnknown = outcomeUnknown;
    }

    /** What the server says decides; where it says nothing, whether anything of the call has gone out. */
    private static PgmqException of(Status status, Facts facts, boolean left) {
        return new PgmqException(status, facts, facts.fromServer ? leavesOpen(facts.reason, status.getCode()) : left);
    }

    /** Whether the contract leaves open what was applied. A reason that is newer than this client is judged by its code. */
    static boolean leavesOpen(String reason, Status.Code code) {
        return UNKNOWN_REASONS.contains(reason) || !KNOWN_REASONS.contains(reason) && UNKNOWN_CODES.contains(code);
    }

    /**
     * What a status says.
     *
     * @param left whether anything of the call has gone out
     */
    static PgmqException of(Status status, Metadata trailers, boolean left) {
        Facts facts = new Facts();
        if (trailers != null) {
            facts.read(status, trailers);
        }
        return of(status, facts, left);
    }

    /** What an error inside a reply says: what the unary call would have had as its status. */
    static PgmqException of(CommandError error) {
        Facts facts = new Facts();
        facts.fromServer = true;
        facts.reason = error.getReason() == ErrorReason.UNRECOGNIZED
                ? String.valueOf(error.getReasonValue())
                : name(error.getReason());
        facts.metadata = new HashMap<>(error.getMetadataMap());
        facts.requestId = error.getRequestId();
        facts.retryDelay = error.hasRetryDelay() ? Convert.duration(error.getRetryDelay()) : null;
        return of(Status.fromCodeValue(error.getCode()).withDescription(error.getMessage()), facts, true);
    }

    /** A failure that this client has found itself. */
    static PgmqException local(Status status, boolean outcomeUnknown) {
        return new PgmqException(status, new Facts(), outcomeUnknown);
    }

    /** The same failure, found by another thread, as the calling thread throws it: with its own stack trace. */
    PgmqException told() {
        return new PgmqException(this, outcomeUnknown);
    }

    /** The same failure of a call of which something else is known: an earlier attempt, or that it has not left. */
    PgmqException with(boolean unknown) {
        return outcomeUnknown == unknown ? this : new PgmqException(this, unknown);
    }

    /** The same failure where several messages were settled at once: with some reasons, some of them may be. */
    PgmqException ofSeveral() {
        return with(outcomeUnknown || isPartial());
    }

    boolean isPartial() {
        return PARTIAL_REASONS.contains(facts.reason);
    }

    /**
     * The code of gRPC.
     *
     * @return the code, never {@code OK}
     */
    public Status.Code code() {
        return code;
    }

    /**
     * The reason that the server gives: a name of the contract's {@code ErrorReason} without the prefix, such as
     * {@code QUEUE_NOT_FOUND}. A reason that is newer than this client is here as well.
     *
     * @return the reason, or the empty text where no server of pgmq-grpc has answered
     */
    public String reason() {
        return facts.reason;
    }

    /**
     * The path of the field that is wrong, such as {@code messages[17].message}.
     *
     * @return the path, or the empty text where no field is named
     */
    public String field() {
        return metadata().getOrDefault("field", "");
    }

    /**
     * The values that belong to the reason, with the keys that the contract names.
     *
     * @return the values
     */
    public Map<String, String> metadata() {
        return Collections.unmodifiableMap(facts.metadata);
    }

    /**
     * The id under which the server's log knows the call.
     *
     * @return the id, or the empty text where no server has answered
     */
    public String requestId() {
        return facts.requestId;
    }

    /**
     * How long the server asks to wait before the call is made again.
     *
     * @return the delay, where the server gives one
     */
    public Optional<Duration> retryDelay() {
        return Optional.ofNullable(facts.retryDelay);
    }

    /**
     * Whether the call may have been applied although it has failed. It is false only where the server says so, and
     * where the call has not left.
     *
     * @return whether the outcome is unknown
     */
    public boolean outcomeUnknown() {
        return outcomeUnknown;
    }

    /** Whether the same call may be made again, given that it may be applied twice or not. */
    boolean isRepeatable(boolean harmlessTwice) {
        return code == Status.Code.UNAVAILABLE
                && !facts.repetitionForbidden
                && (facts.fromServer || harmlessTwice || !outcomeUnknown);
    }

    /** Whether a stream that ended so is worth being opened again. */
    boolean isPassing() {
        return switch (code) {
            case INVALID_ARGUMENT,
                    NOT_FOUND,
                    ALREADY_EXISTS,
                    FAILED_PRECONDITION,
                    OUT_OF_RANGE,
                    UNIMPLEMENTED,
                    PERMISSION_DENIED,
                    UNAUTHENTICATED -> false;
            default -> true;
        };
    }

    private static String text(Status status, Facts facts) {
        StringBuilder text = new StringBuilder(status.getCode().name());
        if (!facts.reason.isEmpty()) {
            text.append(' ').append(facts.reason);
        }
        if (status.getDescription() != null) {
            text.append(": ").append(status.getDescription());
        }
        if (!facts.requestId.isEmpty()) {
            text.append(" (request ").append(facts.requestId).append(')');
        }
        return text.toString();
    }

    private static String name(ErrorReason reason) {
        return reason.name().substring("ERROR_REASON_".length());
    }

    private static Metadata.Key<String> ascii(String name) {
        return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
    }

    /** What the details and trailers of a status tell. */
    private static final class Facts implements Serializable {
        private static final long serialVersionUID = 1;

        String reason = "";
        HashMap<String, String> metadata = new HashMap<>();
        String requestId = "";
        Duration retryDelay;
        boolean fromServer;
        boolean repetitionForbidden;

        void read(Status status, Metadata trailers) {
            String id = trailers.get(REQUEST_ID);
            requestId = id == null ? "" : id;
            com.google.rpc.Status details = StatusProto.fromStatusAndTrailers(status, trailers);
            try {
                for (Any detail : details.getDetailsList()) {
                    read(detail);
                }
            } catch (InvalidProtocolBufferException e) {
                // Something between has spoilt the details: the code is all that is left.
                fromServer = false;
            }
            readPushback(trailers.get(PUSHBACK));
        }

        private void read(Any detail) throws InvalidProtocolBufferException {
            if (detail.is(ErrorInfo.class)) {
                ErrorInfo info = detail.unpack(ErrorInfo.class);
                if (info.getDomain().equals(DOMAIN)) {
                    fromServer = true;
                    reason = info.getReason();
                    metadata = new HashMap<>(info.getMetadataMap());
                }
            } else if (detail.is(RequestInfo.class)) {
                requestId = detail.unpack(RequestInfo.class).getRequestId();
            } else if (detail.is(RetryInfo.class)) {
                retryDelay = Convert.duration(detail.unpack(RetryInfo.class).getRetryDelay());
            }
        }

        /** A negative number, or none at all, says that the call must not be repeated. */
        private void readPushback(String pushback) {
            if (pushback == null) {
                return;
            }
            try {
                long millis = Long.parseLong(pushback);
                repetitionForbidden = millis < 0;
                retryDelay = millis < 0 ? retryDelay : Duration.ofMillis(millis);
            } catch (NumberFormatException e) {
                repetitionForbidden = true;
            }
        }
    }
}

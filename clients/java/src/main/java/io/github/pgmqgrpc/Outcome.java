package io.github.pgmqgrpc;

/** What a settling call did to one message. */
public enum Outcome {
    /** Not done: a newer server says something that this client does not know. */
    UNSPECIFIED,
    /** What was asked for. */
    DONE,
    /** The message is gone: deleted, archived, popped or purged. Treat it as done. */
    NOT_FOUND,
    /** Somebody else has read the message since, and has it now. Nothing was changed. */
    STALE
}

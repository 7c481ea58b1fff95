package io.github.pgmqgrpc.conformance;

/** A step has not given what it should. */
final class Failure extends RuntimeException {
    private static final long serialVersionUID = 1;

    Failure(String message) {
        super(message);
    }
}

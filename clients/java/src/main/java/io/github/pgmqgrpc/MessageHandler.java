package io.github.pgmqgrpc;

/** What is done with each message, see {@link Queue#handle(MessageHandler)}. */
@FunctionalInterface
public interface MessageHandler {
    /**
     * Handles a message. When it returns, the message is deleted (or archived, see {@link ConsumeOptions#archive});
     * when it throws, the message is released and comes again after a delay. A handler may also settle by itself.
     *
     * @param message the message
     * @throws Exception whatever goes wrong
     */
    void handle(Message message) throws Exception;
}

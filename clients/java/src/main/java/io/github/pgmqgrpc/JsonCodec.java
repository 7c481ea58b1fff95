package io.github.pgmqgrpc;

import java.lang.reflect.Type;

/**
 * Turns bodies and headers into JSON text and back. Replace {@link JacksonCodec} by one of your own with {@link
 * ClientBuilder#json}; Jackson is then not needed. It must be safe for use by many threads.
 */
public interface JsonCodec {
    /**
     * Writes a value.
     *
     * @param value any value, also null
     * @return its JSON text
     * @throws IllegalArgumentException if the value cannot be written
     */
    String encode(Object value);

    /**
     * Reads a text.
     *
     * @param text JSON text
     * @param type what to make of it; {@code Object.class} means maps, lists, texts, numbers, booleans and null
     * @return the value
     * @throws IllegalArgumentException if the text does not fit the type
     */
    Object decode(String text, Type type);
}

package io.github.pgmqgrpc;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamWriteFeature;
import com.fasterxml.jackson.core.json.JsonWriteFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.cfg.JsonNodeFeature;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.lang.reflect.Type;

/**
 * JSON by Jackson: the codec of a client that is given no other. Whole numbers of any size and decimals keep their
 * digits, as {@code BigInteger} and {@code BigDecimal} where they need it. Fields that a class does not know are passed
 * over.
 */
public final class JacksonCodec implements JsonCodec {
    private final ObjectMapper mapper;

    /** Uses a mapper that keeps all digits, with the modules of Jackson that are on the class path. */
    public JacksonCodec() {
        this(JsonMapper.builder(JsonFactory.builder()
                        // A number may have 1,000 digits before the point, and as many behind it.
                        .streamReadConstraints(StreamReadConstraints.builder()
                                .maxNumberLength(4_096)
                                .build())
                        .build())
                .findAndAddModules()
                .enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS)
                .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
                .disable(JsonNodeFeature.STRIP_TRAILING_BIGDECIMAL_ZEROES)
                .enable(StreamWriteFeature.WRITE_BIGDECIMAL_AS_PLAIN)
                // The server refuses NaN, which is better than a text in the place of a number.
                .disable(JsonWriteFeature.WRITE_NAN_AS_STRINGS)
                .build());
    }

    /**
     * Uses a mapper of yours.
     *
     * @param mapper the mapper, which is not changed
     */
    public JacksonCodec(ObjectMapper mapper) {
        this.mapper = mapper;
    }

    @Override
    public String encode(Object value) {
        try {
            return mapper.writeValueAsString(value);
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException(e);
        }
    }

    @Override
    public Object decode(String text, Type type) {
        try {
            return mapper.readValue(text, mapper.constructType(type));
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException(e);
        }
    }
}

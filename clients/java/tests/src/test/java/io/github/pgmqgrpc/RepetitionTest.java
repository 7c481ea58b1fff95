package io.github.pgmqgrpc;

import static org.junit.jupiter.api.Assertions.assertEquals;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;

class RepetitionTest {
    @Test
    void theCallsThatMayBeRepeatedAreThoseOfTheServiceConfig() throws IOException {
        Path config = Path.of(System.getProperty("contract"), "pgmq/v1/service_config.json");
        Set<String> listed = new TreeSet<>();
        for (JsonNode method : new ObjectMapper().readTree(config.toFile()).findValues("method")) {
            listed.add(method.asText());
        }
        assertEquals(listed, new TreeSet<>(Connection.HARMLESS_TWICE));
    }
}

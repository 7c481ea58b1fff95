package io.github.pgmqgrpc.conformance;

import io.github.pgmqgrpc.PgmqClient;
import io.github.pgmqgrpc.PgmqException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.stream.Stream;
import org.snakeyaml.engine.v2.api.Load;
import org.snakeyaml.engine.v2.api.LoadSettings;

/** Runs the cases that all clients share: {@code Runner DIRECTORY}. */
public final class Runner {
    private static final int MOST_SECONDS = 120;

    private final PgmqClient client = PgmqClient.connect();
    private final String run = Long.toString(System.currentTimeMillis() % 100_000_000, 36);
    private final StringBuilder results = new StringBuilder();
    private int passed;
    private int failed;

    private Runner() {}

    /**
     * Runs all cases, or those that {@code CONFORMANCE_ONLY} names.
     *
     * @param arguments the directory of the cases
     * @throws Exception if the cases cannot be read
     */
    public static void main(String[] arguments) throws Exception {
        Runner runner = new Runner();
        List<Map<String, Object>> cases = read(Path.of(arguments[0]));
        if (cases.isEmpty()) {
            // A run of nothing proves nothing.
            System.out.println("there are no cases in " + arguments[0]);
            runner.failed++;
        }
        for (Map<String, Object> given : cases) {
            runner.run(given);
        }
        String file = System.getenv("CONFORMANCE_RESULTS");
        if (file != null) {
            Files.writeString(Path.of(file), runner.results);
        }
        System.out.printf("%d passed, %d failed%n", runner.passed, runner.failed);
        System.exit(runner.failed == 0 ? 0 : 1);
    }

    private static List<Map<String, Object>> read(Path directory) throws IOException {
        String only = System.getenv().getOrDefault("CONFORMANCE_ONLY", "");
        List<Map<String, Object>> cases = new ArrayList<>();
        try (Stream<Path> files = Files.list(directory)) {
            for (Path file : files.filter(path -> path.toString().endsWith(".yaml"))
                    .sorted()
                    .toList()) {
                for (Object given :
                        (List<?>) new Load(LoadSettings.builder().build()).loadFromString(Files.readString(file))) {
                    cases.add(Values.map(given));
                }
            }
        }
        cases.removeIf(given -> !given.get("name").toString().contains(only));
        return cases;
    }

    private void run(Map<String, Object> given) {
        String name = given.get("name").toString();
        ExecutorService executor = Executors.newSingleThreadExecutor();
        Future<?> done = executor.submit(() -> {
            new Case(given, "j" + run + (passed + failed) + "_").run();
            return null;
        });
        String problem = null;
        try {
            done.get(MOST_SECONDS, TimeUnit.SECONDS);
        } catch (TimeoutException e) {
            done.cancel(true);
            problem = "it lasted for more than " + MOST_SECONDS + " seconds";
        } catch (InterruptedException | java.util.concurrent.ExecutionException e) {
            Throwable cause = e.getCause() == null ? e : e.getCause();
            problem = cause instanceof Failure ? cause.getMessage() : cause.toString();
        }
        executor.shutdown();
        if (problem == null) {
            passed++;
        } else {
            failed++;
            System.out.println("FAILED " + name + ": " + problem);
        }
        results.append(problem == null ? "pass" : "fail")
                .append('\t')
                .append(name)
                .append('\n');
    }

    /** One case, with queues of its own. */
    private final class Case {
        private final Map<String, Object> given;
        private final Map<String, Object> names = new LinkedHashMap<>();
        private final Map<String, Object> saved = new HashMap<>();
        private final List<AutoCloseable> opened = new ArrayList<>();

        Case(Map<String, Object> given, String prefix) {
            this.given = given;
            queues().keySet().forEach(name -> names.put(name, prefix + name));
            Values.list(given.getOrDefault("names", List.of()))
                    .forEach(name -> names.put((String) name, prefix + name));
        }

        private Map<String, Object> queues() {
            Object queues = given.getOrDefault("queues", List.of());
            if (queues instanceof Map<?, ?>) {
                return Values.map(queues);
            }
            Map<String, Object> plain = new LinkedHashMap<>();
            Values.list(queues).forEach(name -> plain.put((String) name, Map.of()));
            return plain;
        }

        void run() throws Exception {
            try {
                for (Map.Entry<String, Object> queue : queues().entrySet()) {
                    Map<String, Object> create = new HashMap<>(Values.map(resolve(queue.getValue())));
                    create.put("queue", names.get(queue.getKey()));
                    perform(client, "create_queue", create);
                }
                int number = 0;
                for (Object step : Values.list(given.get("steps"))) {
                    step(++number, Values.map(step));
                }
            } finally {
                for (AutoCloseable stream : opened) {
                    stream.close();
                }
                names.values().forEach(name -> drop((String) name));
            }
        }

        private void drop(String name) {
            try {
                client.dropQueue(name);
            } catch (PgmqException e) {
                // It was no queue, or the case has dropped it.
            }
        }

        private void step(int number, Map<String, Object> step) throws Exception {
            String word = step.get("do").toString();
            String place = "step " + number + " (" + word + "): ";
            for (String key : step.keySet()) {
                if (!List.of("do", "with", "client", "deadline", "expect", "error", "save")
                        .contains(key)) {
                    throw new Failure(place + "unknown key " + key);
                }
            }
            PgmqClient by = step.containsKey("client") ? (PgmqClient) resolve(step.get("client")) : client;
            if (step.containsKey("deadline")) {
                by = by.withDeadline(Values.span(step.get("deadline")));
            }
            Object came;
            try {
                came = perform(by, word, Values.map(resolve(step.getOrDefault("with", Map.of()))));
            } catch (PgmqException e) {
                Object error = Values.plain(e);
                if (!step.containsKey("error")) {
                    throw new Failure(place + "expected no error, and came " + error);
                }
                compare(place, resolve(step.get("error")), error);
                return;
            }
            if (step.containsKey("error")) {
                throw new Failure(place + "expected the error " + step.get("error") + ", and came " + came);
            }
            if (step.containsKey("expect")) {
                compare(place, resolve(step.get("expect")), came);
            }
            if (step.containsKey("save")) {
                saved.put(step.get("save").toString(), came);
            }
        }

        private Object perform(PgmqClient by, String word, Map<String, Object> with) throws Exception {
            Arguments arguments = new Arguments(with);
            Object came = Values.plain(new Words(by, opened).perform(word, arguments));
            arguments.checkAllUsed();
            return came;
        }

        private void compare(String place, Object expected, Object came) {
            String problem = Matcher.compare(expected, came, "");
            if (problem != null) {
                throw new Failure(place + problem);
            }
        }

        private Object saved(String path) {
            String name = path.split("\\.")[0];
            if (!saved.containsKey(name)) {
                throw new Failure("nothing is saved as " + name);
            }
            return Values.at(saved, path);
        }

        /** Replaces names, saved values and long texts. */
        private Object resolve(Object value) {
            if (value instanceof String text) {
                return text.startsWith("$") && !Matcher.WORDS.contains(text)
                        ? saved(text.substring(1))
                        : names.getOrDefault(text, text);
            }
            if (value instanceof List<?> items) {
                return new ArrayList<>(items.stream().map(this::resolve).toList());
            }
            if (!(value instanceof Map<?, ?>)) {
                return value;
            }
            Map<String, Object> map = Values.map(value);
            if (map.size() == 1 && map.containsKey("$text")) {
                List<?> parts = Values.list(map.get("$text"));
                return parts.get(0).toString().repeat(((Number) parts.get(1)).intValue());
            }
            if (map.size() == 1 && map.containsKey("$list")) {
                List<?> parts = Values.list(map.get("$list"));
                Object item = resolve(parts.get(0));
                return Stream.generate(() -> item)
                        .limit(((Number) parts.get(1)).intValue())
                        .toList();
            }
            Map<String, Object> resolved = new LinkedHashMap<>();
            map.forEach((key, item) -> resolved.put(key, resolve(item)));
            return resolved;
        }
    }
}

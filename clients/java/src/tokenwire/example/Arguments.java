package tokenwire.example;

import java.io.File;
import java.util.HashMap;
import java.util.Map;
import tokenwire.client.TokenwireClient;

/** Options of the programs, each with a value: --target, --tls-ca, --api-key and what a program adds. */
final class Arguments {
    private final Map<String, String> values = new HashMap<>();

    Arguments(String[] given) {
        for (int i = 0; i + 1 < given.length; i += 2) {
            values.put(given[i], given[i + 1]);
        }
    }

    String get(String name, String otherwise) {
        return values.getOrDefault(name, otherwise);
    }

    TokenwireClient client() throws Exception {
        String target = get("--target", "127.0.0.1:50051");
        String authorities = get("--tls-ca", null);
        String key = get("--api-key", null);
        return authorities == null
                ? TokenwireClient.plaintext(target, key, false)
                : TokenwireClient.tls(target, new File(authorities), key);
    }
}

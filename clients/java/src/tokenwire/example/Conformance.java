package tokenwire.example;

import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.protobuf.Message;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.QuotaFailure;
import com.google.rpc.RetryInfo;
import io.grpc.Context;
import io.grpc.StatusRuntimeException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import tokenwire.client.Output;
import tokenwire.client.Session;
import tokenwire.client.TokenwireClient;
import tokenwire.client.TokenwireException;
import tokenwire.v1.ChatMessage;
import tokenwire.v1.ChatRequest;
import tokenwire.v1.ChatResponse;
import tokenwire.v1.Conversation;
import tokenwire.v1.Finish;
import tokenwire.v1.GenerateRequest;
import tokenwire.v1.GenerateResponse;
import tokenwire.v1.GenerationOptions;
import tokenwire.v1.GenerationServiceGrpc.GenerationServiceBlockingStub;
import tokenwire.v1.Prompt;
import tokenwire.v1.SessionRequest;
import tokenwire.v1.SessionResponse;
import tokenwire.v1.TextRequest;

/** What {@code tokenwire conformance --client} drives: the client through every case. */
public final class Conformance {
    private static final Gson GSON = new Gson();

    private Conformance() {}

    public static void main(String[] given) throws Exception {
        Arguments arguments = new Arguments(given);
        String folder = arguments.get("--vectors", null);
        if (folder != null) {
            vectors(Path.of(folder));
            return;
        }
        String name = arguments.get("--case", "");
        try (TokenwireClient client = arguments.client()) {
            if (!call(client, name)) {
                try (Session session = client.session(1024)) {
                    if (!SessionCases.run(session, name)) {
                        JsonObject skip = new JsonObject();
                        skip.addProperty("skip", "this program does not know the case " + name);
                        tell(skip);
                    }
                }
            }
        }
    }

    private static boolean call(TokenwireClient client, String name) {
        GenerationServiceBlockingStub stub = client.blocking();
        GenerationOptions none = GenerationOptions.getDefaultInstance();
        switch (name) {
            case "generate", "tls", "key" -> generate(stub, Example.greedy(3), "one two three");
            case "prompts" -> generate(stub, none, "one two", "lost one");
            case "chat" -> chat(stub);
            case "bad-field" -> generate(stub, none, "refuse me");
            case "overloaded" -> generate(stub, none, "overload me");
            case "deadline" -> generate(stub.withDeadlineAfter(2, TimeUnit.SECONDS), none, "hang on");
            case "deadline-text" -> generate(stub, none, "slow words");
            case "cancel" -> cancel(stub);
            default -> {
                return false;
            }
        }
        return true;
    }

    private static void generate(GenerationServiceBlockingStub stub, GenerationOptions options, String... prompts) {
        GenerateRequest.Builder request = GenerateRequest.newBuilder().setOptions(options);
        Stream.of(prompts).forEach(text -> request.addPrompts(Prompt.newBuilder().setText(text)));
        Map<Integer, String> texts = new HashMap<>();
        try {
            Iterator<GenerateResponse> responses = stub.generate(request.build());
            while (responses.hasNext()) {
                GenerateResponse response = responses.next();
                texts.merge(response.getIndex(), response.getDelta().getText(), String::concat);
                if (response.hasFinish()) {
                    Finish finish = response.getFinish();
                    TokenwireException error = TokenwireException.of(finish).orElse(null);
                    tell(line(response.getIndex(), 0, texts.get(response.getIndex()), finish, error));
                }
            }
        } catch (StatusRuntimeException error) {
            tellError(error);
        }
    }

    private static void chat(GenerationServiceBlockingStub stub) {
        Conversation.Builder conversation = Conversation.newBuilder();
        conversation.addMessages(ChatMessage.newBuilder().setRole("system").setContent("Be brief."));
        conversation.addMessages(ChatMessage.newBuilder().setRole("user").setContent("one two three"));
        ChatRequest request =
                ChatRequest.newBuilder().setConversation(conversation).setOptions(Example.greedy(3)).build();
        StringBuilder text = new StringBuilder();
        Iterator<ChatResponse> responses = stub.chat(request);
        while (responses.hasNext()) {
            ChatResponse response = responses.next();
            text.append(response.getDelta().getText());
            if (response.hasFinish()) {
                tell(line(0, response.getChoice(), text.toString(), response.getFinish(), null));
            }
        }
    }

    private static void cancel(GenerationServiceBlockingStub stub) {
        try (Context.CancellableContext context = Context.current().withCancellation()) {
            context.run(() -> {
                Iterator<GenerateResponse> responses =
                        stub.generate(Example.prompt("hang on", GenerationOptions.getDefaultInstance()));
                responses.next();
                context.cancel(null);
                try {
                    while (responses.hasNext()) {
                        responses.next();
                    }
                } catch (StatusRuntimeException error) {
                    tellError(error);
                }
            });
        }
    }

    static JsonObject line(int output, int choice, String text, Finish finish, TokenwireException error) {
        JsonObject line = new JsonObject();
        line.addProperty("output", output);
        line.addProperty("choice", choice);
        line.addProperty("text", text);
        if (finish != null) {
            line.addProperty("reason", finish.getReason().name().replace("FINISH_REASON_", ""));
            line.addProperty("tokens", finish.getUsage().getCompletionTokens());
        }
        if (error != null) {
            line.add("error", told(error));
        }
        return line;
    }

    private static JsonObject told(TokenwireException error) {
        JsonObject found = new JsonObject();
        found.addProperty("code", error.code().name());
        found.addProperty("reason", error.reason());
        JsonArray fields = new JsonArray();
        error.fields().forEach(fields::add);
        found.add("fields", fields);
        error.retryAfter().ifPresent(delay -> found.addProperty("retry_after_ms", delay.toMillis()));
        return found;
    }

    private static void tellError(Throwable error) {
        JsonObject line = new JsonObject();
        line.add("error", told(TokenwireException.of(error)));
        tell(line);
    }

    static void tell(JsonObject line) {
        System.out.println(GSON.toJson(line));
    }

    private static void vectors(Path folder) throws Exception {
        Map<String, Message> kinds = new HashMap<>();
        for (Message kind : List.of(
                SessionRequest.getDefaultInstance(), SessionResponse.getDefaultInstance(),
                GenerateRequest.getDefaultInstance(), ChatRequest.getDefaultInstance(),
                ChatResponse.getDefaultInstance())) {
            kinds.put(kind.getDescriptorForType().getFullName(), kind);
        }
        JsonFormat.TypeRegistry details = JsonFormat.TypeRegistry.newBuilder()
                .add(List.of(
                        ErrorInfo.getDescriptor(), BadRequest.getDescriptor(), RetryInfo.getDescriptor(),
                        QuotaFailure.getDescriptor()))
                .build();
        JsonFormat.Parser parser = JsonFormat.parser().usingTypeRegistry(details);
        JsonArray index = GSON.fromJson(Files.readString(folder.resolve("index.json")), JsonArray.class);
        for (int i = 0; i < index.size(); i++) {
            JsonObject entry = index.get(i).getAsJsonObject();
            String name = entry.get("name").getAsString();
            Message kind = kinds.get(entry.get("message").getAsString());
            Message message = kind.getParserForType().parseFrom(Files.readAllBytes(folder.resolve(name + ".binpb")));
            Message.Builder fromJson = kind.newBuilderForType();
            parser.merge(Files.readString(folder.resolve(name + ".json")), fromJson);
            JsonObject line = new JsonObject();
            line.addProperty("vector", name);
            line.addProperty("encoded", Base64.getEncoder().encodeToString(message.toByteArray()));
            line.addProperty("json_equal", message.equals(fromJson.build()));
            tell(line);
        }
    }
}

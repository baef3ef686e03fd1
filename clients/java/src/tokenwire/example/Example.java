package tokenwire.example;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.TimeUnit;
import tokenwire.client.Output;
import tokenwire.client.Session;
import tokenwire.client.TokenwireClient;
import tokenwire.client.TokenwireException;
import tokenwire.v1.ChatMessage;
import tokenwire.v1.ChatRequest;
import tokenwire.v1.Conversation;
import tokenwire.v1.GenerateRequest;
import tokenwire.v1.GenerateResponse;
import tokenwire.v1.GenerationOptions;
import tokenwire.v1.Prompt;
import tokenwire.v1.SamplingParams;
import tokenwire.v1.StopConditions;
import tokenwire.v1.TextRequest;

/** Shows what the client does, against a running gateway: build/example [--target HOST:PORT] [--tls-ca FILE] [--api-key KEY]. */
public final class Example {
    private static final GenerationOptions ENDLESS =
            GenerationOptions.newBuilder().setStop(StopConditions.newBuilder().setIgnoreEos(true)).build();

    private Example() {}

    public static void main(String[] given) throws Exception {
        try (TokenwireClient client = new Arguments(given).client()) {
            generate(client);
            chat(client);
            session(client);
            deadline(client);
            typedError(client);
        }
    }

    static GenerationOptions greedy(int maxTokens) {
        return GenerationOptions.newBuilder()
                .setSampling(SamplingParams.newBuilder().setTemperature(0))
                .setStop(StopConditions.newBuilder().setMaxTokens(maxTokens))
                .build();
    }

    static GenerateRequest prompt(String text, GenerationOptions options) {
        return GenerateRequest.newBuilder().addPrompts(Prompt.newBuilder().setText(text)).setOptions(options).build();
    }

    private static void generate(TokenwireClient client) {
        System.out.print("generate:");
        client.blocking().generate(prompt("Once upon a time", greedy(16))).forEachRemaining(response -> {
            System.out.print(response.getDelta().getText());
            if (response.hasFinish()) {
                int tokens = response.getFinish().getUsage().getCompletionTokens();
                System.out.println(" (" + response.getFinish().getReason() + ", " + tokens + " tokens)");
            }
        });
    }

    private static void chat(TokenwireClient client) {
        ChatMessage question = ChatMessage.newBuilder().setRole("user").setContent("What is the capital of France?").build();
        ChatRequest request = ChatRequest.newBuilder()
                .setConversation(Conversation.newBuilder().addMessages(question))
                .setOptions(greedy(16))
                .build();
        System.out.print("chat: ");
        client.blocking().chat(request).forEachRemaining(response -> System.out.print(response.getDelta().getText()));
        System.out.println();
    }

    /** Many requests on one stream, one of them with credits and cancelled. */
    private static void session(TokenwireClient client) throws InterruptedException {
        try (Session session = client.session(256)) {
            TextRequest endless = TextRequest.newBuilder().setText("A story without end").setOptions(ENDLESS).build();
            Output story = session.submit(endless, 4).get(0); // at most four tokens wait unread
            List<Output> chapters = new ArrayList<>();
            for (int number = 1; number <= 20; number++) {
                String text = "Chapter " + number + ":";
                TextRequest request = TextRequest.newBuilder().setText(text).setOptions(greedy(4)).build();
                chapters.addAll(session.submit(request, null));
            }
            for (Output chapter : chapters) {
                chapter.whole();
            }
            story.next();
            story.cancel();
            story.whole();
            String reason = story.finish().orElseThrow().getReason().name();
            System.out.println("session: " + chapters.size() + " chapters, the story ended with " + reason);
        }
    }

    /** A deadline ends a call by its own limit. */
    private static void deadline(TokenwireClient client) {
        try {
            Iterator<GenerateResponse> responses = client.blocking()
                    .withDeadlineAfter(300, TimeUnit.MILLISECONDS)
                    .generate(prompt("A story without end", ENDLESS));
            while (responses.hasNext()) {
                GenerateResponse response = responses.next();
                if (response.hasFinish()) {
                    System.out.println("deadline: " + response.getFinish().getReason());
                }
            }
        } catch (StatusRuntimeException error) {
            if (error.getStatus().getCode() != Status.Code.DEADLINE_EXCEEDED) {
                throw error;
            }
            System.out.println("deadline: DEADLINE_EXCEEDED");
        }
    }

    /** What a refusal says of the field that is wrong. */
    private static void typedError(TokenwireClient client) {
        GenerationOptions bad =
                GenerationOptions.newBuilder().setSampling(SamplingParams.newBuilder().setTemperature(-1)).build();
        try {
            client.blocking().generate(prompt("Hello", bad)).forEachRemaining(response -> {});
            throw new IllegalStateException("a temperature below zero was not refused");
        } catch (StatusRuntimeException error) {
            TokenwireException found = TokenwireException.of(error);
            System.out.println("error: " + found.code() + ", " + found.reason() + ", " + found.fields());
        }
    }
}

package tokenwire.example;

import java.util.ArrayList;
import java.util.List;
import tokenwire.client.Output;
import tokenwire.client.Session;
import tokenwire.client.TokenwireException;
import tokenwire.v1.RequestContext;
import tokenwire.v1.TextRequest;

/** The conformance kit's cases of Sessions. */
final class SessionCases {
    private SessionCases() {}

    /** False for a case that it does not know. */
    static boolean run(Session session, String name) throws InterruptedException {
        switch (name) {
            case "session" -> tellAll(send(session, "one two"), send(session, "three"), send(session, "four five six"));
            case "session-choices" -> tellAll(send(session, "one two", null, 2), send(session, "three"));
            case "session-cancel" -> {
                List<Output> hanging = send(session, "hang on");
                List<Output> other = send(session, "one two three");
                hanging.get(0).next();
                hanging.get(0).cancel();
                tellAll(hanging, other);
            }
            case "session-leave" -> {
                try (Output left = send(session, "hang on").get(0)) {
                    left.next();
                }
                tellSecond(send(session, "one two").get(0));
            }
            case "session-credit" -> tellAll(send(session, "a b c d e f g h i j", 2, 0));
            case "session-held" -> {
                List<Output> held = send(session, "a b", 0, 0);
                List<Output> other = send(session, "one two three");
                other.get(0).whole();
                held.get(0).grant(2);
                tellAll(held, other);
            }
            case "session-error" ->
                tellAll(send(session, "refuse me"), send(session, "overload me"), send(session, "one two"));
            case "session-drain" -> {
                List<Output> held = send(session, "hold on");
                held.get(0).next(); // with this text came the Drain: the next request has a new stream
                tellAll(held, send(session, "one two"));
            }
            case "session-lost" -> tellAll(send(session, "hold on"));
            case "session-future" -> tellAll(send(session, "one two"), send(session, "three"));
            case "session-too-many-choices" -> {
                trySubmit(session, TextRequest.newBuilder().setText("one two"), 129);
                tellSecond(send(session, "three").get(0));
            }
            case "session-bad-text" -> {
                trySubmit(session, TextRequest.newBuilder().setText("one two \ud83d"), 0);
                tellSecond(send(session, "three").get(0));
            }
            case "session-time-limit" -> {
                tellAll(send(session, "one"));
                tellSecond(session.submit(limited("mute", 1000).build(), null).get(0));
            }
            case "session-no-hello" -> trySubmit(session, limited("one two", 5000), 0);
            case "session-overrun" -> {
                tellAll(send(session, "overrun", 2, 0)); // its stream has ended then
                tellSecond(send(session, "one two").get(0));
            }
            case "session-bad-frame" -> {
                tellAll(send(session, "crooked"));
                tellSecond(send(session, "one two").get(0));
            }
            case "session-large" -> {
                String text = "slow " + "x".repeat(1_000_000);
                List<List<Output>> all = new ArrayList<>();
                for (int number = 0; number < 40; number++) {
                    all.add(send(session, text));
                }
                tellAll(all);
            }
            case "session-many" -> {
                List<List<Output>> all = new ArrayList<>();
                for (int number = 0; number < 1000; number++) {
                    all.add(send(session, "n" + number));
                }
                tellAll(all);
            }
            default -> {
                return false;
            }
        }
        return true;
    }

    private static List<Output> send(Session session, String text) throws InterruptedException {
        return send(session, text, null, 0);
    }

    private static List<Output> send(Session session, String text, Integer credit, int choices)
            throws InterruptedException {
        TextRequest.Builder request = TextRequest.newBuilder().setText(text);
        if (choices > 0) {
            request.getOptionsBuilder().setNumChoices(choices);
        }
        return session.submit(request.build(), credit);
    }

    @SafeVarargs
    private static void tellAll(List<Output>... requests) throws InterruptedException {
        tellAll(List.of(requests));
    }

    private static void tellAll(List<List<Output>> requests) throws InterruptedException {
        for (int index = 0; index < requests.size(); index++) {
            List<Output> outputs = requests.get(index);
            for (int choice = 0; choice < outputs.size(); choice++) {
                Output output = outputs.get(choice);
                TokenwireException error = null;
                try {
                    output.whole();
                } catch (TokenwireException caught) {
                    error = caught;
                }
                Conformance.tell(Conformance.line(index, choice, output.text(), output.finish().orElse(null), error));
            }
        }
    }

    private static void tellSecond(Output output) throws InterruptedException {
        String text = output.whole();
        Conformance.tell(Conformance.line(1, 0, text, output.finish().orElse(null), null));
    }

    private static TextRequest.Builder limited(String text, long timeoutMs) {
        return TextRequest.newBuilder().setText(text).setContext(RequestContext.newBuilder().setTimeoutMs(timeoutMs));
    }

    /** Submits a case's first request, which may be refused before it has outputs, and tells how that ended. */
    private static void trySubmit(Session session, TextRequest.Builder request, int choices) throws InterruptedException {
        if (choices > 0) {
            request.getOptionsBuilder().setNumChoices(choices);
        }
        List<Output> outputs;
        try {
            outputs = session.submit(request.build(), null);
        } catch (TokenwireException error) {
            Conformance.tell(Conformance.line(0, 0, "", null, error));
            return;
        }
        tellAll(outputs);
    }
}

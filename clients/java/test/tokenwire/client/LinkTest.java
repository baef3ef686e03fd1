package tokenwire.client;

import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import java.util.ArrayList;
import java.util.List;
import tokenwire.v1.Drain;
import tokenwire.v1.SessionRequest;
import tokenwire.v1.SessionResponse;
import tokenwire.v1.TextRequest;

/** A link that is over, or left, takes no request, for which nobody would ever hear of an end; and time limits. */
public final class LinkTest {
    private LinkTest() {}

    public static void main(String[] given) {
        Link lost = link(new Sent());
        check(submitted(lost), "an open link takes a request");
        lost.onError(Status.UNAVAILABLE.asRuntimeException());
        check(!submitted(lost), "a link that is over takes none");

        Sent sent = new Sent();
        Link drained = link(sent);
        drained.onNext(SessionResponse.newBuilder().setDrain(Drain.getDefaultInstance()).build());
        check(!submitted(drained), "a link that the server drains takes none");
        sent.turns.forEach(Runnable::run);
        check(sent.frames.isEmpty(), "and nothing of it goes up");

        TextRequest.Builder none = TextRequest.newBuilder();
        check(new TimeLimit(none.build()).leftMs() > 0, "a request that names no time has all of it");
        none.getContextBuilder().setTimeoutMs(0);
        check(new TimeLimit(none.build()).leftMs() < 1, "a request whose time is 0 has none");
        System.out.println("LinkTest: passed");
    }

    private static Link link(Sent sent) {
        Link link = new Link((changed, ended) -> {}, sent.turns::add);
        link.beforeStart(sent);
        return link;
    }

    private static boolean submitted(Link link) {
        TextRequest request = TextRequest.getDefaultInstance();
        return link.submit(request, 1, null, new TimeLimit(request)).isPresent();
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError("not so: " + what);
        }
    }

    /** A stream that keeps what goes up. */
    private static final class Sent extends ClientCallStreamObserver<SessionRequest> {
        final List<SessionRequest> frames = new ArrayList<>();
        final List<Runnable> turns = new ArrayList<>(); // of the writer

        @Override
        public void onNext(SessionRequest frame) {
            frames.add(frame);
        }

        @Override
        public void onError(Throwable error) {}

        @Override
        public void onCompleted() {}

        @Override
        public void cancel(String message, Throwable cause) {}

        @Override
        public boolean isReady() {
            return true;
        }

        @Override
        public void setOnReadyHandler(Runnable handler) {}

        @Override
        public void disableAutoInboundFlowControl() {}

        @Override
        public void request(int count) {}

        @Override
        public void setMessageCompression(boolean enable) {}
    }
}

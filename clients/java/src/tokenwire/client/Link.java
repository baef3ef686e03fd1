package tokenwire.client;

import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.RejectedExecutionException;
import tokenwire.v1.Cancel;
import tokenwire.v1.CancelReason;
import tokenwire.v1.Credit;
import tokenwire.v1.Finish;
import tokenwire.v1.Hello;
import tokenwire.v1.SessionRequest;
import tokenwire.v1.SessionResponse;
import tokenwire.v1.Submit;
import tokenwire.v1.TextRequest;

/** One stream of a session: its handles, who reads them, and what waits to go up. */
final class Link implements ClientResponseObserver<SessionRequest, SessionResponse> {
    /** What a link tells its session. */
    interface Owner {
        /** So many outputs have ended, the link takes nothing new any more, or it has ended itself. */
        void changed(Link link, int ended);
    }

    static final int PROTOCOL_VERSION = 1;
    private static final long LAST_FIRST_HANDLE = (1L << 32) - 1 - 1024;
    /** A frame takes nothing more past it; a larger Submit goes alone. */
    private static final int MAX_FRAME_BYTES = 512 << 10;
    /** Of a Cancel or a Credit, at most. */
    private static final int SMALL_BYTES = 16;

    final CompletableFuture<Hello> hello = new CompletableFuture<>();
    private final Owner owner;
    private final Executor writer;
    private final Map<Integer, Output> outputs = new HashMap<>();
    private ClientCallStreamObserver<SessionRequest> call;
    private List<SessionRequest.Builder> pending = new ArrayList<>();
    private int filled;
    private boolean scheduled;
    private boolean left;
    private boolean ended;
    private long next = 1;

    /** {@code writer}: runs one thing at a time. */
    Link(Owner owner, Executor writer) {
        this.owner = owner;
        this.writer = writer;
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<SessionRequest> stream) {
        call = stream;
    }

    void greet() {
        Hello ours = Hello.newBuilder().setProtocolVersion(PROTOCOL_VERSION).setPeer("tokenwire-java").build();
        writer.execute(() -> call.onNext(SessionRequest.newBuilder().setHello(ours).build()));
    }

    synchronized boolean isLeft() {
        return left;
    }

    /** The stream is over; until then it may have to be cancelled, left or not. */
    synchronized boolean isEnded() {
        return ended;
    }

    /** The outputs of a request that goes up; empty where the link takes nothing new any more. */
    synchronized Optional<List<Output>> submit(TextRequest request, int number, Integer credit, TimeLimit limit) {
        if (left) {
            return Optional.empty();
        }
        int first = (int) next; // a uint32 in Java's int
        next += number;
        List<Output> found = new ArrayList<>();
        for (int choice = 0; choice < number; choice++) {
            Output output = new Output(this, first + choice, credit, limit);
            outputs.put(first + choice, output);
            found.add(output);
        }
        Submit.Builder submit = Submit.newBuilder().setHandle(first).setRequest(limit.applied(request));
        if (credit != null) {
            submit.setInitialCredit(credit);
        }
        Submit built = submit.build();
        frame(built.getSerializedSize()).addSubmits(built);
        left |= next > LAST_FIRST_HANDLE;
        return Optional.of(found);
    }

    synchronized void cancel(int handle) {
        if (outputs.containsKey(handle)) {
            Cancel.Builder cancel = Cancel.newBuilder().setHandle(handle).setReason(CancelReason.CANCEL_REASON_CLIENT);
            frame(SMALL_BYTES).addCancels(cancel);
        }
    }

    /** As cancel, for who holds an output's lock. */
    void cancelSoon(int handle) {
        write(() -> cancel(handle));
    }

    synchronized void grant(int handle, int tokens) {
        if (outputs.containsKey(handle)) {
            frame(SMALL_BYTES).addCredits(Credit.newBuilder().setHandle(handle).setTokens(tokens));
        }
    }

    void close() {
        call.cancel("the session is closed", null);
    }

    /** The frame that has room for so much more, and is sent soon. */
    private SessionRequest.Builder frame(int bytes) {
        if (pending.isEmpty() || filled + bytes > MAX_FRAME_BYTES) {
            pending.add(SessionRequest.newBuilder());
            filled = 0;
        }
        filled += bytes;
        schedule();
        return pending.get(pending.size() - 1);
    }

    /** What is asked for until the writer has its turn goes up together. */
    private void schedule() {
        if (!scheduled) {
            scheduled = true;
            write(this::writeFrame);
        }
    }

    private void write(Runnable work) {
        try {
            writer.execute(work);
        } catch (RejectedExecutionException closed) {
            // the session is closed, and nothing goes up any more
        }
    }

    private void writeFrame() {
        List<SessionRequest.Builder> frames;
        boolean done;
        synchronized (this) {
            scheduled = false;
            frames = pending;
            pending = new ArrayList<>();
            done = left && outputs.isEmpty();
            if (ended) {
                return;
            }
        }
        try {
            frames.forEach(frame -> call.onNext(frame.build()));
            if (done) {
                call.onCompleted();
            }
        } catch (IllegalStateException over) {
            // the stream has ended meanwhile; its reader says why
        }
    }

    @Override
    public void onNext(SessionResponse frame) {
        if (frame.getTextsCount() != frame.getHandlesCount() || frame.getNumTokensCount() != frame.getHandlesCount()) {
            refuse("a frame came whose columns differ in length", "BAD_FRAME");
            return;
        }
        int finished = 0;
        int overrun = -1;
        synchronized (this) {
            if (frame.hasHello()) {
                greeted(frame.getHello());
            }
            for (int row = 0; row < frame.getHandlesCount(); row++) {
                Output output = outputs.get(frame.getHandles(row));
                if (output != null && !output.add(new Output.Delta(frame.getTexts(row), frame.getNumTokens(row)))) {
                    overrun = row;
                }
            }
            for (Finish finish : frame.getFinishesList()) {
                Output output = outputs.remove(finish.getHandle());
                if (output != null) {
                    output.end(finish);
                    finished++;
                }
            }
            left |= frame.hasDrain();
            if (left) {
                schedule();
            }
        }
        if (finished > 0 || frame.hasDrain()) {
            owner.changed(this, finished);
        }
        if (overrun >= 0) {
            String handle = Integer.toUnsignedString(frame.getHandles(overrun));
            refuse("handle " + handle + ": tokens came that were not granted", "CREDIT_EXCEEDED");
        }
    }

    /** Ends the stream for what the protocol forbids. */
    private void refuse(String message, String reason) {
        lose(new TokenwireException(Status.Code.INTERNAL, message, reason));
        call.cancel(message, null);
    }

    private void greeted(Hello theirs) {
        if (theirs.getProtocolVersion() == PROTOCOL_VERSION) {
            hello.complete(theirs);
            return;
        }
        String message = "the server speaks session protocol " + theirs.getProtocolVersion();
        hello.completeExceptionally(
                new TokenwireException(Status.Code.FAILED_PRECONDITION, message, "PROTOCOL_VERSION"));
        close();
    }

    @Override
    public void onError(Throwable error) {
        lose(TokenwireException.of(error));
    }

    @Override
    public void onCompleted() {
        lose(new TokenwireException(Status.Code.UNAVAILABLE, "the server ended the session", "SESSION_ENDED"));
    }

    private void lose(TokenwireException why) {
        List<Output> open;
        synchronized (this) {
            left = true;
            ended = true;
            open = new ArrayList<>(outputs.values());
            outputs.clear();
        }
        hello.completeExceptionally(why);
        open.forEach(output -> output.lose(why));
        owner.changed(this, open.size());
    }
}

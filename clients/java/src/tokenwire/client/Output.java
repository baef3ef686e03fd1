package tokenwire.client;

import java.util.ArrayDeque;
import java.util.Optional;
import java.util.Queue;
import tokenwire.v1.Finish;
import tokenwire.v1.FinishReason;
import tokenwire.v1.Usage;

/**
 * One output of a request on a session. It is read by one thread; any may cancel it or grant it more. Closing it cancels: what is
 * not read to its end keeps its place in the session until then.
 */
public final class Output implements AutoCloseable {
    /** New text, and the tokens that stand behind it. */
    public record Delta(String text, int numTokens) {}

    /** So much longer than a request's time limit its end is waited for: the server's own may be on its way. */
    private static final long LATE_MS = 1000;

    private final Link link;
    private final int handle;
    private final int window;
    private final TimeLimit limit;
    private final StringBuilder text = new StringBuilder();
    private final Queue<Delta> waiting = new ArrayDeque<>();
    private Finish finish;
    private TokenwireException lost;
    private int taken;
    private int came;
    private long mayCome;

    Output(Link link, int handle, Integer credit, TimeLimit limit) {
        this.link = link;
        this.handle = handle;
        this.window = credit == null ? 0 : credit;
        this.mayCome = credit == null ? Long.MAX_VALUE / 2 : credit;
        this.limit = limit;
    }

    /** Waits for more text; empty after the last. Throws what broke the stream. */
    public Optional<Delta> next() throws InterruptedException {
        Delta delta;
        boolean open;
        synchronized (this) {
            while (waiting.isEmpty() && finish == null && lost == null) {
                long left = limit.leftMs() + LATE_MS;
                if (left < 1) {
                    endLate();
                } else {
                    wait(left);
                }
            }
            delta = waiting.poll();
            open = finish == null && lost == null;
            if (delta == null && finish == null) {
                throw lost;
            }
        }
        if (delta == null) {
            return Optional.empty();
        }
        text.append(delta.text());
        taken += delta.numTokens();
        if (open && window > 0 && taken >= Math.max(1, window / 2)) {
            grant(taken);
            taken = 0;
        }
        return Optional.of(delta);
    }

    /** Reads to the end and returns all text; throws the error that the output, or its stream, ended with. */
    public String whole() throws InterruptedException {
        while (next().isPresent()) {
            // it is kept
        }
        Optional<TokenwireException> error = TokenwireException.of(finish);
        if (error.isPresent()) {
            throw error.get();
        }
        return text();
    }

    /** All text that was read. */
    public String text() {
        return text.toString();
    }

    /** How it ended; empty until then. */
    public synchronized Optional<Finish> finish() {
        return Optional.ofNullable(finish);
    }

    /** Takes it back. Its end still comes: CANCELLED, if nothing else was first. */
    public void cancel() {
        link.cancel(handle);
    }

    /** Cancels it, where it has not ended. */
    @Override
    public void close() {
        cancel();
    }

    /** Lets the server send more tokens than reading has granted. */
    public void grant(int tokens) {
        synchronized (this) {
            mayCome += Integer.toUnsignedLong(tokens);
        }
        link.grant(handle, tokens);
    }

    /** Takes a row; false for more tokens than were granted. */
    synchronized boolean add(Delta delta) {
        mayCome -= delta.numTokens();
        came += delta.numTokens();
        if (mayCome < 0) {
            return false;
        }
        if (finish == null) { // else it was over by this side's clock
            waiting.add(delta);
            notifyAll();
        }
        return true;
    }

    synchronized void end(Finish how) {
        finish = finish == null ? how : finish;
        notifyAll();
    }

    synchronized void lose(TokenwireException why) {
        lost = finish == null ? why : null;
        notifyAll();
    }

    /** Called with the lock. What came stands; the server is told, and frees the place. */
    private void endLate() {
        finish = Finish.newBuilder()
                .setHandle(handle)
                .setReason(FinishReason.FINISH_REASON_DEADLINE)
                .setUsage(Usage.newBuilder().setCompletionTokens(came))
                .build();
        link.cancelSoon(handle);
    }
}

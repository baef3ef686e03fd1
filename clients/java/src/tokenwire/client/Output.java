package tokenwire.client;

import java.util.ArrayDeque;
import java.util.Optional;
import java.util.Queue;
import tokenwire.v1.Finish;

/** One output of a request on a session. It is read by one thread; any may cancel it or grant it more. */
public final class Output {
    /** New text, and the tokens that stand behind it. */
    public record Delta(String text, int numTokens) {}

    private final Link link;
    private final int handle;
    private final int window;
    private final StringBuilder text = new StringBuilder();
    private final Queue<Delta> waiting = new ArrayDeque<>();
    private Finish finish;
    private TokenwireException lost;
    private int taken;

    Output(Link link, int handle, Integer credit) {
        this.link = link;
        this.handle = handle;
        this.window = credit == null ? 0 : credit;
    }

    /** Waits for more text; empty after the last. Throws what broke the stream. */
    public Optional<Delta> next() throws InterruptedException {
        Delta delta;
        boolean open;
        synchronized (this) {
            while (waiting.isEmpty() && finish == null && lost == null) {
                wait();
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

    /** Lets the server send more tokens than reading has granted. */
    public void grant(int tokens) {
        link.grant(handle, tokens);
    }

    synchronized void add(Delta delta) {
        waiting.add(delta);
        notifyAll();
    }

    synchronized void end(Finish how) {
        finish = how;
        notifyAll();
    }

    synchronized void lose(TokenwireException why) {
        lost = why;
        notifyAll();
    }
}

package tokenwire.client;

import io.grpc.Status;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import tokenwire.v1.GenerationServiceGrpc.GenerationServiceStub;
import tokenwire.v1.TextRequest;

/**
 * Many requests on one stream: docs/session.md of Tokenwire. It keeps no more open than both sides allow, and goes on with a
 * new stream when the server drains. What was on a stream that breaks fails with its status. Threads may share it.
 */
public final class Session implements AutoCloseable {
    private static final int MAX_CHOICES = 128;

    private final GenerationServiceStub stub;
    private final int maxOpen;
    private final ExecutorService writer = Executors.newSingleThreadExecutor(work -> {
        Thread thread = new Thread(work, "tokenwire-session");
        thread.setDaemon(true);
        return thread;
    });
    private final Set<Link> links = new HashSet<>();
    private Link current;
    private int open;
    private boolean closed;

    Session(GenerationServiceStub stub, int maxOpen) {
        this.stub = stub;
        this.maxOpen = Math.max(1, maxOpen);
    }

    /**
     * Sends a request and returns its outputs, one per choice. Waits while there is no room, as long as the request's own time limit
     * says.
     *
     * @param credit most tokens of an output that are sent before they are read; reading grants more, unless it is 0; null: no
     *     limit
     */
    public List<Output> submit(TextRequest request, Integer credit) throws InterruptedException {
        int number = Math.max(1, request.getOptions().getNumChoices());
        if (request.getOptions().getNumChoices() < 0 || number > MAX_CHOICES) { // a uint32 in Java's int
            throw tooManyChoices(request.getOptions().getNumChoices(), MAX_CHOICES);
        }
        Text.refuseBad(request);
        TimeLimit limit = new TimeLimit(request);
        try {
            while (true) {
                Link link = link();
                int most = mostOpen(link, limit);
                if (number > most) {
                    throw tooManyChoices(number, most);
                }
                synchronized (this) {
                    if (link.isLeft()) {
                        continue;
                    }
                    if (open + number > most) {
                        limit.await(this);
                        continue;
                    }
                    Optional<List<Output>> outputs = link.submit(request, number, credit, limit);
                    if (outputs.isPresent()) { // else it was left in this moment
                        open += number;
                        return outputs.get();
                    }
                }
            }
        } catch (TimeoutException over) {
            throw TimeLimit.over();
        }
    }

    private static TokenwireException tooManyChoices(int number, int most) {
        String said = Integer.toUnsignedString(number) + " is not allowed: at most " + most + " outputs may be open here";
        return TokenwireException.refused("options.num_choices", said);
    }

    private synchronized Link link() {
        if (closed) {
            throw new TokenwireException(Status.Code.UNAVAILABLE, "the session is closed", "SESSION_CLOSED");
        }
        if (current == null || current.isLeft()) {
            current = new Link(this::changed, writer);
            links.add(current);
            stub.session(current);
            current.greet();
        }
        return current;
    }

    private int mostOpen(Link link, TimeLimit limit) throws InterruptedException, TimeoutException {
        try {
            int most = link.hello.get(Math.max(1, limit.leftMs()), TimeUnit.MILLISECONDS).getMaxRequests();
            return most > 0 ? Math.min(maxOpen, most) : maxOpen;
        } catch (ExecutionException refused) {
            throw TokenwireException.of(refused.getCause());
        }
    }

    private synchronized void changed(Link link, int ended) {
        open -= ended;
        if (link.isEnded()) {
            links.remove(link);
            current = link == current ? null : current;
        }
        notifyAll();
    }

    /** Cancels what is open and ends the streams. */
    @Override
    public void close() {
        List<Link> all;
        synchronized (this) {
            closed = true;
            all = List.copyOf(links);
            notifyAll();
        }
        all.forEach(Link::close);
        writer.shutdown();
    }
}

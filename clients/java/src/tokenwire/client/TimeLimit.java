package tokenwire.client;

import io.grpc.Status;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import tokenwire.v1.TextRequest;

/** How long a request may take, from when it was asked for, by this side's clock. */
final class TimeLimit {
    private static final long NEVER_MS = TimeUnit.DAYS.toMillis(365 * 100);
    private final long begunNs = System.nanoTime();
    private final long limitMs;

    TimeLimit(TextRequest request) {
        long asked = request.getContext().getTimeoutMs();
        boolean limited = request.getContext().hasTimeoutMs() && asked >= 0; // a uint64 in Java's long
        limitMs = limited ? Math.min(asked, NEVER_MS) : NEVER_MS;
    }

    /** What is left, less than 1 when the time is over. */
    long leftMs() {
        return limitMs - TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - begunNs);
    }

    /** The request with what is left of its time. */
    TextRequest applied(TextRequest request) {
        if (limitMs == NEVER_MS) {
            return request;
        }
        TextRequest.Builder left = request.toBuilder();
        left.getContextBuilder().setTimeoutMs(Math.max(1, leftMs()));
        return left.build();
    }

    /** Waits on a monitor, which is held, until it is notified or the time is over. */
    void await(Object monitor) throws InterruptedException, TimeoutException {
        long left = leftMs();
        if (left < 1) {
            throw new TimeoutException();
        }
        monitor.wait(left);
    }

    static TokenwireException over() {
        String message = "the time ran out while the request waited for room on the session";
        return new TokenwireException(Status.Code.DEADLINE_EXCEEDED, message, "DEADLINE_EXCEEDED");
    }
}

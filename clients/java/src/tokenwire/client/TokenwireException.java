package tokenwire.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/** What ended a call, or an output, with the details that a server sends: google.rpc's ErrorInfo, BadRequest and RetryInfo. */
public final class TokenwireException extends RuntimeException {
    private static final Metadata.Key<byte[]> DETAILS =
            Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

    private final Status.Code code;
    private String reason = "";
    private List<String> fields = List.of();
    private Duration retryAfter;

    TokenwireException(Status.Code code, String message, String reason) {
        this(code, message, reason, List.of());
    }

    private TokenwireException(Status.Code code, String message, String reason, List<String> fields) {
        super(message);
        this.code = code;
        this.reason = reason;
        this.fields = fields;
    }

    private TokenwireException(tokenwire.v1.Status status) {
        super(status.getMessage());
        code = Status.fromCodeValue(status.getCode()).getCode();
        for (Any detail : status.getDetailsList()) {
            read(detail);
        }
    }

    /** A value that is not sent. */
    static TokenwireException refused(String field, String said) {
        return new TokenwireException(Status.Code.INVALID_ARGUMENT, field + ": " + said, "INVALID_REQUEST", List.of(field));
    }

    /** The error of a call: what a stub threw or an observer was given. */
    public static TokenwireException of(Throwable error) {
        if (error instanceof TokenwireException already) {
            return already;
        }
        Metadata trailers = Status.trailersFromThrowable(error);
        byte[] bytes = trailers == null ? null : trailers.get(DETAILS);
        if (bytes != null) {
            try {
                return new TokenwireException(tokenwire.v1.Status.parseFrom(bytes)); // field for field a google.rpc.Status
            } catch (InvalidProtocolBufferException damaged) {
                // the status itself says what there is to say
            }
        }
        Status status = Status.fromThrowable(error);
        return new TokenwireException(status.getCode(), String.valueOf(status.getDescription()), "");
    }

    /** The error inside a terminal event. */
    public static Optional<TokenwireException> of(tokenwire.v1.Finish finish) {
        return finish.hasError() ? Optional.of(new TokenwireException(finish.getError())) : Optional.empty();
    }

    private void read(Any detail) {
        try {
            if (detail.is(ErrorInfo.class)) {
                reason = detail.unpack(ErrorInfo.class).getReason();
            } else if (detail.is(BadRequest.class)) {
                List<String> found = new ArrayList<>();
                detail.unpack(BadRequest.class).getFieldViolationsList().forEach(each -> found.add(each.getField()));
                fields = List.copyOf(found);
            } else if (detail.is(RetryInfo.class)) {
                com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
                retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
            }
        } catch (InvalidProtocolBufferException damaged) {
            // a detail that cannot be read says nothing
        }
    }

    public Status.Code code() {
        return code;
    }

    /** A stable string that programs may compare; empty where the server sent none. */
    public String reason() {
        return reason;
    }

    /** The wrong fields, by their path in the request. */
    public List<String> fields() {
        return fields;
    }

    /** When another try may succeed, where the server said so. */
    public Optional<Duration> retryAfter() {
        return Optional.ofNullable(retryAfter);
    }
}

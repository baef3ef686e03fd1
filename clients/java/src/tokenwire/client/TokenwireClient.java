package tokenwire.client;

import io.grpc.ClientInterceptor;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLException;
import tokenwire.v1.GenerationServiceGrpc;

/** A connection to a gateway: stubs of every call, with TLS and an API key where they are given, and sessions. */
public final class TokenwireClient implements AutoCloseable {
    private static final int MAX_MESSAGE_BYTES = 16 << 20;
    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private final ManagedChannel channel;

    private TokenwireClient(ManagedChannel channel) {
        this.channel = channel;
    }

    /** Without TLS. It connects with the first call. */
    public static TokenwireClient plaintext(String target) {
        return new TokenwireClient(builder(target).usePlaintext().build());
    }

    /**
     * Over TLS.
     *
     * @param authorities a file of the certificates to trust; null: those of this machine
     * @param apiKey an API key or a JWT, sent with every call; null: none
     */
    public static TokenwireClient tls(String target, File authorities, String apiKey) throws SSLException {
        NettyChannelBuilder builder = builder(target);
        builder.sslContext(GrpcSslContexts.forClient().trustManager(authorities).build());
        if (apiKey != null) {
            Metadata headers = new Metadata();
            headers.put(AUTHORIZATION, "Bearer " + apiKey);
            ClientInterceptor bearer = MetadataUtils.newAttachHeadersInterceptor(headers);
            builder.intercept(bearer);
        }
        return new TokenwireClient(builder.build());
    }

    private static NettyChannelBuilder builder(String target) {
        return NettyChannelBuilder.forTarget(target).maxInboundMessageSize(MAX_MESSAGE_BYTES);
    }

    public GenerationServiceGrpc.GenerationServiceBlockingStub blocking() {
        return GenerationServiceGrpc.newBlockingStub(channel);
    }

    public GenerationServiceGrpc.GenerationServiceStub async() {
        return GenerationServiceGrpc.newStub(channel);
    }

    /** Many requests on one stream, at most {@code maxOpen} outputs of them open at once. */
    public Session session(int maxOpen) {
        return new Session(async(), maxOpen);
    }

    @Override
    public void close() {
        channel.shutdownNow();
        try {
            channel.awaitTermination(5, TimeUnit.SECONDS);
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
        }
    }
}

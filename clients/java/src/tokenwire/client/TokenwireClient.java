package tokenwire.client;

import com.google.common.net.InetAddresses;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.netty.GrpcSslContexts;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLException;
import tokenwire.v1.GenerationServiceGrpc;

/** A connection to a gateway: stubs of every call, with TLS and an API key where they are given, and sessions. */
public final class TokenwireClient implements AutoCloseable {
    private static final int MAX_MESSAGE_BYTES = 16 << 20;
    /** After so long without a sign the server is asked for one, and given up so long after that. */
    private static final int KEEPALIVE_S = 20;
    private static final int KEEPALIVE_TIMEOUT_S = 10;
    private static final Metadata.Key<String> AUTHORIZATION =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private final ManagedChannel channel;

    private TokenwireClient(ManagedChannel channel) {
        this.channel = channel;
    }

    /** Without TLS and without a key. It connects with the first call. */
    public static TokenwireClient plaintext(String target) {
        return plaintext(target, null, false);
    }

    /**
     * Without TLS. It connects with the first call.
     *
     * @param apiKey an API key or a JWT, sent with every call; null: none
     * @param plaintextKey let the key go to other machines too, where something else encrypts the way
     */
    public static TokenwireClient plaintext(String target, String apiKey, boolean plaintextKey) {
        if (apiKey != null && !plaintextKey && !staysHere(target)) {
            String message = "the key would go to " + target + " unencrypted: use tls, or plaintextKey where the way is encrypted";
            throw new TokenwireException(Status.Code.FAILED_PRECONDITION, message, "KEY_IN_PLAINTEXT");
        }
        return new TokenwireClient(builder(target, apiKey).usePlaintext().build());
    }

    /**
     * Over TLS.
     *
     * @param authorities a file of the certificates to trust; null: those of this machine
     * @param apiKey an API key or a JWT, sent with every call; null: none
     */
    public static TokenwireClient tls(String target, File authorities, String apiKey) throws SSLException {
        NettyChannelBuilder builder = builder(target, apiKey);
        builder.sslContext(GrpcSslContexts.forClient().trustManager(authorities).build());
        return new TokenwireClient(builder.build());
    }

    private static NettyChannelBuilder builder(String target, String apiKey) {
        NettyChannelBuilder builder = NettyChannelBuilder.forTarget(target)
                .maxInboundMessageSize(MAX_MESSAGE_BYTES)
                .keepAliveTime(KEEPALIVE_S, TimeUnit.SECONDS)
                .keepAliveTimeout(KEEPALIVE_TIMEOUT_S, TimeUnit.SECONDS)
                .keepAliveWithoutCalls(true);
        if (apiKey != null) {
            if (!apiKey.chars().allMatch(each -> '!' <= each && each <= '~')) {
                throw TokenwireException.refused("api_key", "only visible ASCII characters are allowed, and no white space");
            }
            Metadata headers = new Metadata();
            headers.put(AUTHORIZATION, "Bearer " + apiKey);
            builder.intercept(MetadataUtils.newAttachHeadersInterceptor(headers));
        }
        return builder;
    }

    /** Whether all addresses of gRPC's target are this machine's, as it is written: names are not looked up. */
    private static boolean staysHere(String target) {
        if (target.startsWith("unix:") || target.startsWith("unix-abstract:")) {
            return true;
        }
        String addresses = target;
        for (String scheme : List.of("dns:///", "dns:", "ipv4:", "ipv6:")) {
            addresses = addresses.startsWith(scheme) ? addresses.substring(scheme.length()) : addresses;
        }
        return Arrays.stream(addresses.split(",", -1)).allMatch(address -> {
            String host = address.substring(0, Math.max(0, address.lastIndexOf(':'))).replaceAll("^\\[|\\]$", "");
            boolean literal = InetAddresses.isInetAddress(host);
            return host.equals("localhost") || literal && InetAddresses.forString(host).isLoopbackAddress();
        });
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

// Package tokenwire calls a Tokenwire gateway: text in, text out, over gRPC.
//
// A Client has the generated stub of every call, with TLS and an API key where they are given. Session carries
// many requests on one stream. ErrorOf reads an error's typed details.
package tokenwire

//go:generate buf generate --template buf.gen.yaml

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	pb "tokenwire/tokenwirev1"
)

// MaxMessageBytes is the largest message that is read; frames of a busy session stay far below it.
const MaxMessageBytes = 16 << 20

const (
	keepaliveTime    = 20 * time.Second // without a sign of the server, until it is asked for one
	keepaliveTimeout = 10 * time.Second // and then, until it is given up
)

// Options say how a gateway is reached.
type Options struct {
	// APIKey is an API key or a JWT, sent with every call: over TLS, or to this machine itself.
	APIKey string
	// PlaintextKey lets the key go to other machines without TLS, where something else encrypts the way.
	PlaintextKey bool
	// TLS is whether to use it.
	TLS bool
	// CAFile holds the certificates to trust; empty: those of this machine.
	CAFile string
}

// Client is a connection to a gateway. It may be shared by goroutines.
type Client struct {
	pb.GenerationServiceClient
	conn *grpc.ClientConn
}

// bearer adds the API key to every call.
type bearer struct {
	key     string
	overTLS bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.key}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.overTLS }

// NewClient makes a client for host:port. It connects with the first call.
func NewClient(target string, options Options) (*Client, error) {
	if options.APIKey != "" && !options.TLS && !options.PlaintextKey && !staysHere(target) {
		message := fmt.Sprintf("the key would go to %s unencrypted: set TLS, or PlaintextKey where the way is encrypted", target)
		return nil, &Error{Code: codes.FailedPrecondition, Message: message, Reason: "KEY_IN_PLAINTEXT"}
	}
	if strings.ContainsFunc(options.APIKey, func(each rune) bool { return each < '!' || each > '~' }) {
		return nil, refused("api_key", "only visible ASCII characters are allowed, and no white space")
	}
	transport := insecure.NewCredentials()
	if options.TLS {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if options.CAFile != "" {
			pem, err := os.ReadFile(options.CAFile)
			if err != nil {
				return nil, fmt.Errorf("tokenwire: %w", err)
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("tokenwire: %s holds no certificate", options.CAFile)
			}
		}
		transport = credentials.NewTLS(config)
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true,
		}),
	}
	if options.APIKey != "" {
		dial = append(dial, grpc.WithPerRPCCredentials(bearer{options.APIKey, options.TLS}))
	}
	conn, err := grpc.NewClient(target, dial...)
	if err != nil {
		return nil, fmt.Errorf("tokenwire: %w", err)
	}
	return &Client{pb.NewGenerationServiceClient(conn), conn}, nil
}

// staysHere is whether all addresses of gRPC's target are this machine's, as it is written: names are not looked up.
func staysHere(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	for _, scheme := range []string{"dns:///", "dns:", "ipv4:", "ipv6:"} {
		target = strings.TrimPrefix(target, scheme)
	}
	for _, address := range strings.Split(target, ",") {
		host := strings.Trim(address[:max(0, strings.LastIndex(address, ":"))], "[]")
		if host != "localhost" && !net.ParseIP(host).IsLoopback() {
			return false
		}
	}
	return true
}

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.conn.Close() }

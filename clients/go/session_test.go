package tokenwire

import (
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "tokenwire/tokenwirev1"
)

// peer is a gateway of which only Session is called.
type peer struct {
	pb.UnimplementedGenerationServiceServer
	hello        *pb.Hello // nil: it never says it
	began, ended chan struct{}
}

func (p *peer) Session(stream pb.GenerationService_SessionServer) error {
	p.began <- struct{}{}
	if p.hello != nil {
		if err := stream.Send(&pb.SessionResponse{Hello: p.hello}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	p.ended <- struct{}{}
	return stream.Context().Err()
}

// sessionWith serves a peer on the loopback and makes a session to it.
func sessionWith(t *testing.T, hello *pb.Hello) (*Session, *peer) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := &peer{hello: hello, began: make(chan struct{}, 4), ended: make(chan struct{}, 4)}
	server := grpc.NewServer()
	pb.RegisterGenerationServiceServer(server, other)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	client, err := NewClient(listener.Addr().String(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	session := client.NewSession(4)
	t.Cleanup(session.Close)
	return session, other
}

func TestSubmitWaitsForAHelloAsLongAsItsOwnContext(t *testing.T) {
	session, other := sessionWith(t, nil)
	opener, endOpener := context.WithCancel(context.Background())
	opened := make(chan error, 1)
	go func() {
		_, err := session.Submit(opener, &pb.TextRequest{}, nil)
		opened <- err
	}()
	<-other.began
	waiter, endWaiter := context.WithCancel(context.Background())
	endWaiter()
	if _, err := session.Submit(waiter, &pb.TextRequest{}, nil); err != context.Canceled {
		t.Errorf("behind the one that opens the stream: %v", err)
	}
	select {
	case err := <-opened:
		t.Errorf("the one that opens the stream ended with another's context: %v", err)
	default:
	}
	endOpener()
	if err := <-opened; err != context.Canceled {
		t.Errorf("the one that opens the stream: %v", err)
	}
	<-other.ended // its stream is cancelled, and the session open
}

func TestAStreamOfAnotherProtocolVersionIsCancelled(t *testing.T) {
	session, other := sessionWith(t, &pb.Hello{ProtocolVersion: protocolVersion + 1})
	_, err := session.Submit(context.Background(), &pb.TextRequest{}, nil)
	if failed, ok := err.(*Error); !ok || failed.Code != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
	<-other.ended
}

func TestTimeThatWaitsForRoomIsTheRequestsOwn(t *testing.T) {
	session, other := sessionWith(t, &pb.Hello{ProtocolVersion: protocolVersion, MaxRequests: 1})
	if _, err := session.Submit(context.Background(), &pb.TextRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	<-other.began
	for _, timeoutMs := range []uint64{50, 0} {
		limited := &pb.TextRequest{Context: &pb.RequestContext{TimeoutMs: &timeoutMs}}
		_, err := session.Submit(context.Background(), limited, nil)
		if failed, ok := err.(*Error); !ok || failed.Code != codes.DeadlineExceeded {
			t.Errorf("%v", err)
		}
	}
	_, err := session.Submit(context.Background(), &pb.TextRequest{Options: &pb.GenerationOptions{NumChoices: 2}}, nil)
	if failed, ok := err.(*Error); !ok || failed.Code != codes.InvalidArgument || failed.Fields[0] != "options.num_choices" {
		t.Errorf("%v", err)
	}
}

func TestAClosedSessionTakesNothing(t *testing.T) {
	session, other := sessionWith(t, &pb.Hello{ProtocolVersion: protocolVersion})
	submit := func() error {
		_, err := session.Submit(context.Background(), &pb.TextRequest{}, nil)
		return err
	}
	if err := submit(); err != nil {
		t.Fatal(err)
	}
	<-other.began
	session.Close()
	for number := 0; number < 100; number++ {
		if failed, ok := submit().(*Error); !ok || failed.Reason != "SESSION_CLOSED" {
			t.Fatalf("%v", failed)
		}
	}
}

func TestTextThatIsNotUTF8IsRefusedByItsField(t *testing.T) {
	session, _ := sessionWith(t, &pb.Hello{ProtocolVersion: protocolVersion})
	bad := map[string]*pb.TextRequest{
		"text":                         {Input: &pb.TextRequest_Text{Text: "\xff"}},
		"options.stop.stop_strings[1]": {Options: &pb.GenerationOptions{Stop: &pb.StopConditions{StopStrings: []string{"a", "\xff"}}}},
		"conversation.messages[0].content": {Input: &pb.TextRequest_Conversation{Conversation: &pb.Conversation{
			Messages: []*pb.ChatMessage{{Role: "user", Content: "\xff"}},
		}}},
	}
	for field, request := range bad {
		_, err := session.Submit(context.Background(), request, nil)
		if failed, ok := err.(*Error); !ok || failed.Code != codes.InvalidArgument || failed.Fields[0] != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestAKeyThatNoHeaderMayHoldIsRefusedAndNotShown(t *testing.T) {
	for _, key := range []string{"secret\n", " secret", "sécret", "secret\x7f"} {
		_, err := NewClient("127.0.0.1:1", Options{APIKey: key})
		failed, ok := err.(*Error)
		if !ok || failed.Code != codes.InvalidArgument || strings.Contains(failed.Message, "cret") {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestAKeyDoesNotLeaveThisMachineUnencrypted(t *testing.T) {
	for _, target := range []string{
		"127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "unix:/tmp/x", "ipv4:127.0.0.1:1,127.0.0.2:1",
	} {
		if _, err := NewClient(target, Options{APIKey: "k"}); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
	for _, target := range []string{"gateway.example:1", "192.0.2.1:1", "localhost", "ipv4:127.0.0.1:1,192.0.2.1:1"} {
		_, err := NewClient(target, Options{APIKey: "k"})
		if failed, ok := err.(*Error); !ok || failed.Reason != "KEY_IN_PLAINTEXT" {
			t.Errorf("%s: %v", target, err)
		}
		if _, err := NewClient(target, Options{APIKey: "k", PlaintextKey: true}); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

package tokenwire

import (
	"context"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc/codes"

	pb "tokenwire/tokenwirev1"
)

const (
	protocolVersion = 1
	lastFirstHandle = 1<<32 - 1 - 1024 // past it a new stream takes over
)

// Session carries many requests on one stream: docs/session.md of Tokenwire. It keeps no more open than both sides
// allow, and goes on with a new stream when the server drains. What was on a stream that breaks fails with its status.
type Session struct {
	client  *Client
	maxOpen int
	ctx     context.Context
	cancel  context.CancelFunc

	connecting chan struct{} // holds a value while a Submit opens a stream

	mu      sync.Mutex
	current *link // where new requests go; nil: to be opened
	open    int
	changed chan struct{} // closed when there may be room
}

// link is one stream of a session. All of it is guarded by Session.mu but the stream itself.
type link struct {
	stream  pb.GenerationService_SessionClient
	cancel  context.CancelFunc
	hello   *pb.Hello
	outputs map[uint32]*Output
	next    uint64
	pending *pb.SessionRequest
	wake    chan struct{}
	ended   bool
}

// NewSession makes a session on which at most maxOpen outputs are open at once. Its stream is opened by the first Submit.
func (c *Client) NewSession(maxOpen int) *Session {
	ctx, cancel := context.WithCancel(context.Background())
	return &Session{
		client: c, maxOpen: max(1, maxOpen), ctx: ctx, cancel: cancel,
		connecting: make(chan struct{}, 1), changed: make(chan struct{}),
	}
}

// Close cancels what is open and ends the streams.
func (s *Session) Close() { s.cancel() }

// Submit sends a request and returns its outputs, one per choice. It waits while there is no room. Credit is the most
// tokens of an output that are sent before they are read, nil for no limit; reading grants more, unless it is zero.
func (s *Session) Submit(ctx context.Context, request *pb.TextRequest, credit *uint32) ([]*Output, error) {
	number := max(1, int(request.GetOptions().GetNumChoices()))
	for {
		current, err := s.link(ctx)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		limit := s.maxOpen
		if most := int(current.hello.GetMaxRequests()); most > 0 {
			limit = min(limit, most)
		}
		if number > limit {
			s.mu.Unlock()
			return nil, fmt.Errorf("tokenwire: %d choices are not allowed: at most %d outputs may be open", number, limit)
		}
		if s.current == current && s.open+number <= limit {
			outputs := s.submitLocked(current, request, credit, number)
			s.mu.Unlock()
			return outputs, nil
		}
		changed := s.changed
		moved := s.current != current
		s.mu.Unlock()
		if moved {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.ctx.Done():
			return nil, errClosed()
		}
	}
}

func errClosed() *Error {
	return &Error{Code: codes.Unavailable, Message: "the session is closed", Reason: "SESSION_CLOSED"}
}

func (s *Session) submitLocked(l *link, request *pb.TextRequest, credit *uint32, number int) []*Output {
	first := uint32(l.next)
	l.next += uint64(number)
	s.open += number
	outputs := make([]*Output, number)
	for choice := range outputs {
		output := &Output{session: s, link: l, handle: first + uint32(choice), ready: make(chan struct{}, 1)}
		if credit != nil {
			output.window = *credit
		}
		l.outputs[output.handle] = output
		outputs[choice] = output
	}
	l.pending.Submits = append(l.pending.Submits, &pb.Submit{Handle: first, Request: request, InitialCredit: credit})
	l.wakeLocked()
	if l.next > lastFirstHandle {
		s.leaveLocked(l)
	}
	return outputs
}

// link returns the stream for new requests, opened where there is none. It waits for that no longer than ctx.
func (s *Session) link(ctx context.Context) (*link, error) {
	select {
	case s.connecting <- struct{}{}:
		defer func() { <-s.connecting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ctx.Done():
		return nil, errClosed()
	}
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current != nil {
		return current, nil
	}
	opening, cancel := context.WithCancel(s.ctx)
	stop := context.AfterFunc(ctx, cancel)
	current, err := s.openStream(opening)
	if !stop() { // ctx has ended, and the stream with it
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	current.cancel = cancel
	s.mu.Lock()
	s.current = current
	s.mu.Unlock()
	go s.read(current)
	go s.write(current)
	return current, nil
}

// openStream opens a stream and waits for the server's Hello.
func (s *Session) openStream(ctx context.Context) (*link, error) {
	stream, err := s.client.Session(ctx)
	if err != nil {
		return nil, ErrorOf(err)
	}
	hello := &pb.Hello{ProtocolVersion: protocolVersion, Peer: "tokenwire-go"}
	if err := stream.Send(&pb.SessionRequest{Hello: hello}); err != nil && err != io.EOF {
		return nil, ErrorOf(err)
	}
	first, err := stream.Recv() // after a failed Send it says why
	if err != nil {
		return nil, ErrorOf(err)
	}
	if version := first.GetHello().GetProtocolVersion(); version != protocolVersion {
		return nil, &Error{Code: codes.FailedPrecondition, Message: fmt.Sprintf("the server speaks session protocol %d", version)}
	}
	return &link{
		stream: stream, hello: first.GetHello(), outputs: map[uint32]*Output{}, next: 1,
		pending: &pb.SessionRequest{}, wake: make(chan struct{}, 1),
	}, nil
}

func (l *link) wakeLocked() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// write sends what is pending, as one frame each time, and half-closes once the link is left and nothing is open.
func (s *Session) write(l *link) {
	for range l.wake {
		s.mu.Lock()
		frame := l.pending
		l.pending = &pb.SessionRequest{}
		done := s.current != l && len(l.outputs) == 0
		ended := l.ended
		s.mu.Unlock()
		if ended {
			return
		}
		if len(frame.Submits)+len(frame.Cancels)+len(frame.Credits) > 0 {
			if l.stream.Send(frame) != nil {
				return // the reader says why
			}
		}
		if done {
			_ = l.stream.CloseSend()
			return
		}
	}
}

func (s *Session) read(l *link) {
	for {
		frame, err := l.stream.Recv()
		if err != nil {
			l.cancel()
			s.lose(l, err)
			return
		}
		s.take(l, frame)
	}
}

// take hands each row, then each end, to whom it is for.
func (s *Session) take(l *link, frame *pb.SessionResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for row, handle := range frame.GetHandles() {
		if output := l.outputs[handle]; output != nil {
			output.add(Delta{Text: frame.GetTexts()[row], NumTokens: frame.GetNumTokens()[row]})
		}
	}
	for _, finish := range frame.GetFinishes() {
		output := l.outputs[finish.GetHandle()]
		if output == nil {
			continue
		}
		delete(l.outputs, finish.GetHandle())
		s.open--
		output.finish = finish
		output.wake()
	}
	if frame.GetDrain() != nil {
		s.leaveLocked(l)
	}
	if len(frame.GetFinishes()) > 0 {
		s.roomLocked()
		if s.current != l {
			l.wakeLocked()
		}
	}
}

// leaveLocked makes the next Submit open another stream; this one runs out.
func (s *Session) leaveLocked(l *link) {
	if s.current == l {
		s.current = nil
	}
	s.roomLocked()
	l.wakeLocked()
}

func (s *Session) roomLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// lose ends what was open on a stream that is over.
func (s *Session) lose(l *link, err error) {
	reason := &Error{Code: codes.Unavailable, Message: "the server ended the session", Reason: "SESSION_ENDED"}
	if err != io.EOF {
		reason = ErrorOf(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.ended = true
	for handle, output := range l.outputs {
		delete(l.outputs, handle)
		s.open--
		output.lost = reason
		output.wake()
	}
	s.leaveLocked(l)
}

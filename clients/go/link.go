package tokenwire

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"

	pb "tokenwire/tokenwirev1"
)

const (
	protocolVersion = 1
	lastFirstHandle = 1<<32 - 1 - 1024 // past it a new stream takes over
	maxFrameBytes   = 512 << 10        // a frame takes nothing more past it; a larger Submit goes alone
	smallBytes      = 16               // of a Cancel or a Credit, at most
)

// link is one stream of a session. All of it is guarded by Session.mu but the stream itself.
type link struct {
	stream  pb.GenerationService_SessionClient
	cancel  context.CancelFunc
	hello   *pb.Hello
	outputs map[uint32]*Output
	next    uint64
	pending []*pb.SessionRequest // frames to be sent; the last is being filled
	filled  int                  // bytes of the last, about
	wake    chan struct{}
	ended   bool
}

// link returns the stream for new requests, opened where there is none. It waits for that no longer than ctx.
func (s *Session) link(ctx context.Context) (*link, error) {
	select {
	case s.connecting <- struct{}{}:
		defer func() { <-s.connecting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.ctx.Done():
		return nil, errClosed()
	}
	if s.ctx.Err() != nil { // of several that are ready, select takes any
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
		err = context.Cause(ctx)
	} else if s.ctx.Err() != nil {
		err = errClosed()
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
		wake: make(chan struct{}, 1),
	}, nil
}

func (l *link) wakeLocked() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// frameLocked returns the frame that has room for so much more, and is sent soon.
func (l *link) frameLocked(bytes int) *pb.SessionRequest {
	if len(l.pending) == 0 || l.filled+bytes > maxFrameBytes {
		l.pending = append(l.pending, &pb.SessionRequest{})
		l.filled = 0
	}
	l.filled += bytes
	l.wakeLocked()
	return l.pending[len(l.pending)-1]
}

// write sends what is pending, and half-closes once the link is left and nothing is open.
func (s *Session) write(l *link) {
	for range l.wake {
		s.mu.Lock()
		frames := l.pending
		l.pending = nil
		done := s.current != l && len(l.outputs) == 0
		ended := l.ended
		s.mu.Unlock()
		if ended {
			return
		}
		for _, frame := range frames {
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
		if err == nil {
			err = s.take(l, frame)
		}
		if err != nil {
			l.cancel()
			s.lose(l, err)
			return
		}
	}
}

// take hands each row, then each end, to whom it is for. The error is what the protocol forbids.
func (s *Session) take(l *link, frame *pb.SessionResponse) error {
	handles, texts, tokens := frame.GetHandles(), frame.GetTexts(), frame.GetNumTokens()
	if len(handles) != len(texts) || len(handles) != len(tokens) {
		message := "a frame came whose columns differ in length"
		return &Error{Code: codes.Internal, Message: message, Reason: "BAD_FRAME"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for row, handle := range handles {
		output := l.outputs[handle]
		if output != nil && !output.addLocked(Delta{Text: texts[row], NumTokens: tokens[row]}) {
			message := fmt.Sprintf("handle %d: tokens came that were not granted", handle)
			return &Error{Code: codes.Internal, Message: message, Reason: "CREDIT_EXCEEDED"}
		}
	}
	for _, finish := range frame.GetFinishes() {
		output := l.outputs[finish.GetHandle()]
		if output == nil {
			continue
		}
		delete(l.outputs, finish.GetHandle())
		s.open--
		output.endLocked(finish)
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
	return nil
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
		if output.finish == nil {
			output.lost = reason
			output.wake()
		}
	}
	s.leaveLocked(l)
}

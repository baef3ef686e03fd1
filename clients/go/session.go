package tokenwire

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "tokenwire/tokenwirev1"
)

const (
	maxChoices   = 128
	maxTimeoutMs = 1 << 40 // longer than anybody waits, and no overflow of a Duration
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

// Submit sends a request and returns its outputs, one per choice. It waits while there is no room, as long as ctx and the
// request's own time limit say. Credit is the most tokens of an output that are sent before they are read, nil for no limit;
// reading grants more, unless it is zero.
func (s *Session) Submit(ctx context.Context, request *pb.TextRequest, credit *uint32) ([]*Output, error) {
	number := max(1, int(request.GetOptions().GetNumChoices()))
	if number > maxChoices {
		return nil, tooManyChoices(number, maxChoices)
	}
	if err := refuseBadText(request); err != nil {
		return nil, err
	}
	var deadline time.Time
	if asked := request.GetContext(); asked != nil && asked.TimeoutMs != nil {
		deadline = time.Now().Add(time.Duration(min(*asked.TimeoutMs, maxTimeoutMs)) * time.Millisecond)
		message := "the time ran out while the request waited for room on the session"
		over := &Error{Code: codes.DeadlineExceeded, Message: message, Reason: "DEADLINE_EXCEEDED"}
		limited, cancel := context.WithDeadlineCause(ctx, deadline, over)
		defer cancel()
		ctx = limited
	}
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
			return nil, tooManyChoices(number, limit)
		}
		if s.current == current && s.open+number <= limit {
			outputs := s.submitLocked(current, withTimeLeft(request, deadline), credit, number, deadline)
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
			return nil, context.Cause(ctx)
		case <-s.ctx.Done():
			return nil, errClosed()
		}
	}
}

func errClosed() *Error {
	return &Error{Code: codes.Unavailable, Message: "the session is closed", Reason: "SESSION_CLOSED"}
}

func tooManyChoices(number, most int) *Error {
	return refused("options.num_choices", fmt.Sprintf("%d is not allowed: at most %d outputs may be open here", number, most))
}

// withTimeLeft is the request with what is left of its time, which began when it was asked for.
func withTimeLeft(request *pb.TextRequest, deadline time.Time) *pb.TextRequest {
	if deadline.IsZero() {
		return request
	}
	left := proto.Clone(request).(*pb.TextRequest)
	left.Context.TimeoutMs = proto.Uint64(uint64(max(1, time.Until(deadline).Milliseconds())))
	return left
}

func (s *Session) submitLocked(
	l *link, request *pb.TextRequest, credit *uint32, number int, deadline time.Time,
) []*Output {
	first := uint32(l.next)
	l.next += uint64(number)
	s.open += number
	outputs := make([]*Output, number)
	for choice := range outputs {
		output := &Output{session: s, link: l, handle: first + uint32(choice), ready: make(chan struct{}, 1)}
		if credit != nil {
			granted := uint64(*credit)
			output.window, output.mayCome = *credit, &granted
		}
		if !deadline.IsZero() {
			output.until = deadline.Add(late)
		}
		l.outputs[output.handle] = output
		outputs[choice] = output
	}
	submit := &pb.Submit{Handle: first, Request: request, InitialCredit: credit}
	frame := l.frameLocked(proto.Size(submit))
	frame.Submits = append(frame.Submits, submit)
	if l.next > lastFirstHandle {
		s.leaveLocked(l)
	}
	return outputs
}

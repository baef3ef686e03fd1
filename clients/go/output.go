package tokenwire

import (
	"context"
	"io"
	"strings"
	"time"

	pb "tokenwire/tokenwirev1"
)

// Delta is new text of one output, and the tokens that stand behind it.
type Delta struct {
	Text      string
	NumTokens uint32
}

// late is how much longer than a request's time limit its end is waited for: the server's own may be on its way.
const late = time.Second

// Output is one output of a request on a session. Next and Wait are for one goroutine; Cancel and Grant for any. Cancel what
// is not read to its end: it keeps its place in the session until then.
type Output struct {
	session *Session
	link    *link
	handle  uint32
	window  uint32
	until   time.Time // when the server's end has not come in time; zero: never
	ready   chan struct{}

	// Guarded by Session.mu:
	waiting []Delta
	finish  *pb.Finish
	lost    *Error
	came    uint32
	mayCome *uint64 // granted, and not come; nil: no limit

	taken uint32 // read and not granted anew; the reader's alone
	text  strings.Builder
}

// addLocked takes a row. It is false for more tokens than were granted.
func (o *Output) addLocked(delta Delta) bool {
	if o.mayCome != nil {
		if uint64(delta.NumTokens) > *o.mayCome {
			return false
		}
		*o.mayCome -= uint64(delta.NumTokens)
	}
	o.came += delta.NumTokens
	if o.finish == nil { // else it was over by this side's clock
		o.waiting = append(o.waiting, delta)
		o.wake()
	}
	return true
}

func (o *Output) endLocked(finish *pb.Finish) {
	if o.finish == nil {
		o.finish = finish
		o.wake()
	}
}

// endLate ends what is late, by this side's clock. What came stands; the server is told, and frees the place.
func (o *Output) endLate() {
	o.Cancel()
	o.session.mu.Lock()
	defer o.session.mu.Unlock()
	if o.lost == nil {
		usage := &pb.Usage{CompletionTokens: o.came}
		o.endLocked(&pb.Finish{Handle: o.handle, Reason: pb.FinishReason_FINISH_REASON_DEADLINE, Usage: usage})
	}
}

func (o *Output) wake() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// Next waits for more text. After the last it gives io.EOF, and Finish says how the output ended; an *Error where its
// stream broke first.
func (o *Output) Next(ctx context.Context) (Delta, error) {
	var over <-chan time.Time
	for {
		o.session.mu.Lock()
		if len(o.waiting) > 0 {
			delta := o.waiting[0]
			o.waiting = o.waiting[1:]
			ended := o.finish != nil || o.lost != nil
			o.session.mu.Unlock()
			o.took(delta, ended)
			return delta, nil
		}
		finish, lost := o.finish, o.lost
		o.session.mu.Unlock()
		if finish != nil {
			return Delta{}, io.EOF
		}
		if lost != nil {
			return Delta{}, lost
		}
		if over == nil && !o.until.IsZero() {
			timer := time.NewTimer(time.Until(o.until))
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-o.ready:
		case <-over:
			o.endLate()
		case <-ctx.Done():
			return Delta{}, ctx.Err()
		}
	}
}

func (o *Output) took(delta Delta, ended bool) {
	o.text.WriteString(delta.Text)
	if o.window == 0 || ended {
		return
	}
	o.taken += delta.NumTokens
	if o.taken >= max(1, o.window/2) {
		o.Grant(o.taken)
		o.taken = 0
	}
}

// Wait reads the output to its end, and returns all of its text and how it ended. The error is its own, where it ended
// with one, or that of its stream; the text is then what came.
func (o *Output) Wait(ctx context.Context) (string, *pb.Finish, error) {
	for {
		switch _, err := o.Next(ctx); {
		case err == io.EOF:
			if failed := FinishError(o.finish); failed != nil {
				return o.text.String(), o.finish, failed
			}
			return o.text.String(), o.finish, nil
		case err != nil:
			return o.text.String(), nil, err
		}
	}
}

// Finish says how the output ended; nil before Next gave io.EOF.
func (o *Output) Finish() *pb.Finish { return o.finish }

// Cancel takes the output back. Its end still comes: CANCELLED, if nothing else was first.
func (o *Output) Cancel() {
	o.up(func(frame *pb.SessionRequest) {
		cancel := &pb.Cancel{Handle: o.handle, Reason: pb.CancelReason_CANCEL_REASON_CLIENT}
		frame.Cancels = append(frame.Cancels, cancel)
	})
}

// Grant lets the server send more tokens than reading has granted.
func (o *Output) Grant(tokens uint32) {
	o.up(func(frame *pb.SessionRequest) {
		if o.mayCome != nil {
			*o.mayCome += uint64(tokens)
		}
		frame.Credits = append(frame.Credits, &pb.Credit{Handle: o.handle, Tokens: tokens})
	})
}

func (o *Output) up(add func(*pb.SessionRequest)) {
	o.session.mu.Lock()
	defer o.session.mu.Unlock()
	if o.finish == nil && o.lost == nil {
		add(o.link.frameLocked(smallBytes))
	}
}

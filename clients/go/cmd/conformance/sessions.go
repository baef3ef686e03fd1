package main

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"tokenwire"
	pb "tokenwire/tokenwirev1"
)

func submit(ctx context.Context, session *tokenwire.Session, text string, credit *uint32, choices uint32) []*tokenwire.Output {
	request := &pb.TextRequest{
		Input: &pb.TextRequest_Text{Text: text}, Options: &pb.GenerationOptions{NumChoices: choices},
	}
	return must(session.Submit(ctx, request, credit))
}

func tellAll(ctx context.Context, requests ...[]*tokenwire.Output) {
	for index, outputs := range requests {
		for choice, output := range outputs {
			text, finish, err := output.Wait(ctx)
			tell(outputLine(index, choice, text, finish, err))
		}
	}
}

// trySubmit submits the case's first request, which may be refused before it has outputs, and tells how that ended.
func trySubmit(ctx context.Context, session *tokenwire.Session, request *pb.TextRequest) {
	outputs, err := session.Submit(ctx, request, nil)
	if err != nil {
		tell(outputLine(0, 0, "", nil, err))
		return
	}
	tellAll(ctx, outputs)
}

func tellSecond(ctx context.Context, outputs []*tokenwire.Output) {
	text, finish, err := outputs[0].Wait(ctx)
	tell(outputLine(1, 0, text, finish, err))
}

func limited(text string, timeoutMs uint64) *pb.TextRequest {
	second := &pb.RequestContext{TimeoutMs: proto.Uint64(timeoutMs)}
	return &pb.TextRequest{Input: &pb.TextRequest_Text{Text: text}, Context: second}
}

func onSession(ctx context.Context, client *tokenwire.Client, name string) bool {
	session := client.NewSession(1024)
	defer session.Close()
	send := func(text string) []*tokenwire.Output { return submit(ctx, session, text, nil, 0) }
	switch name {
	case "session":
		tellAll(ctx, send("one two"), send("three"), send("four five six"))
	case "session-choices":
		tellAll(ctx, submit(ctx, session, "one two", nil, 2), send("three"))
	case "session-cancel":
		hanging, other := send("hang on"), send("one two three")
		must(hanging[0].Next(ctx))
		hanging[0].Cancel()
		tellAll(ctx, hanging, other)
	case "session-leave":
		func() {
			left := send("hang on")[0]
			defer left.Cancel()
			must(left.Next(ctx))
		}()
		tellSecond(ctx, send("one two"))
	case "session-credit":
		tellAll(ctx, submit(ctx, session, "a b c d e f g h i j", proto.Uint32(2), 0))
	case "session-held":
		held, other := submit(ctx, session, "a b", proto.Uint32(0), 0), send("one two three")
		text, finish, err := other[0].Wait(ctx)
		held[0].Grant(2)
		tellAll(ctx, held)
		tell(outputLine(1, 0, text, finish, err))
	case "session-error":
		tellAll(ctx, send("refuse me"), send("overload me"), send("one two"))
	case "session-drain":
		held := send("hold on")
		must(held[0].Next(ctx)) // with this text came the Drain: the next request has a new stream
		tellAll(ctx, held, send("one two"))
	case "session-lost":
		tellAll(ctx, send("hold on"))
	case "session-future":
		tellAll(ctx, send("one two"), send("three"))
	case "session-too-many-choices":
		trySubmit(ctx, session, &pb.TextRequest{
			Input: &pb.TextRequest_Text{Text: "one two"}, Options: &pb.GenerationOptions{NumChoices: 129},
		})
		tellSecond(ctx, send("three"))
	case "session-bad-text":
		trySubmit(ctx, session, &pb.TextRequest{Input: &pb.TextRequest_Text{Text: "one two \xff"}})
		tellSecond(ctx, send("three"))
	case "session-time-limit":
		tellAll(ctx, send("one"))
		tellSecond(ctx, must(session.Submit(ctx, limited("mute", 1000), nil)))
	case "session-no-hello":
		trySubmit(ctx, session, limited("one two", 5000))
	case "session-overrun":
		tellAll(ctx, submit(ctx, session, "overrun", proto.Uint32(2), 0)) // its stream has ended then
		tellSecond(ctx, send("one two"))
	case "session-bad-frame":
		tellAll(ctx, send("crooked"))
		tellSecond(ctx, send("one two"))
	case "session-large":
		text := "slow " + strings.Repeat("x", 1_000_000)
		var all [][]*tokenwire.Output
		for number := 0; number < 40; number++ {
			all = append(all, send(text))
		}
		tellAll(ctx, all...)
	case "session-many":
		var all [][]*tokenwire.Output
		for number := 0; number < 1000; number++ {
			all = append(all, send(fmt.Sprintf("n%d", number)))
		}
		tellAll(ctx, all...)
	default:
		return false
	}
	return true
}

// Command conformance is what `tokenwire conformance --client` drives: this package through every case.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "google.golang.org/genproto/googleapis/rpc/errdetails"

	"tokenwire"
	pb "tokenwire/tokenwirev1"
)

type line map[string]any

func tell(value line) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		log.Fatal(err)
	}
}

// codeNames are those of gRPC's specification; Go's own are in camel case.
var codeNames = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
	"DATA_LOSS", "UNAUTHENTICATED",
}

func told(err error) line {
	e := tokenwire.ErrorOf(err)
	found := line{"code": codeNames[e.Code], "reason": e.Reason, "fields": e.Fields}
	if e.RetryAfter > 0 {
		found["retry_after_ms"] = e.RetryAfter.Milliseconds()
	}
	return found
}

func outputLine(index, choice int, text string, finish *pb.Finish, err error) line {
	found := line{"output": index, "choice": choice, "text": text}
	if finish != nil {
		found["reason"] = strings.TrimPrefix(finish.GetReason().String(), "FINISH_REASON_")
		found["tokens"] = finish.GetUsage().GetCompletionTokens()
	}
	if err != nil {
		found["error"] = told(err)
	}
	return found
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func options(maxTokens uint32) *pb.GenerationOptions {
	return &pb.GenerationOptions{
		Sampling: &pb.SamplingParams{Temperature: proto.Float32(0)},
		Stop:     &pb.StopConditions{MaxTokens: &maxTokens},
	}
}

func generate(ctx context.Context, client *tokenwire.Client, options *pb.GenerationOptions, prompts ...string) {
	request := &pb.GenerateRequest{Options: options}
	for _, text := range prompts {
		request.Prompts = append(request.Prompts, &pb.Prompt{Form: &pb.Prompt_Text{Text: text}})
	}
	stream, err := client.Generate(ctx, request)
	texts := map[uint32]string{}
	for err == nil {
		var response *pb.GenerateResponse
		if response, err = stream.Recv(); err != nil {
			break
		}
		texts[response.GetIndex()] += response.GetDelta().GetText()
		if finish := response.GetFinish(); finish != nil {
			failed := tokenwire.FinishError(finish)
			tell(outputLine(int(response.GetIndex()), 0, texts[response.GetIndex()], finish, failed))
		}
	}
	if err != io.EOF {
		tell(line{"error": told(err)})
	}
}

func chat(ctx context.Context, client *tokenwire.Client) {
	conversation := &pb.Conversation{Messages: []*pb.ChatMessage{
		{Role: "system", Content: "Be brief."}, {Role: "user", Content: "one two three"},
	}}
	stream := must(client.Chat(ctx, &pb.ChatRequest{Conversation: conversation, Options: options(3)}))
	text := ""
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return
		}
		must(response, err)
		text += response.GetDelta().GetText()
		if finish := response.GetFinish(); finish != nil {
			tell(outputLine(0, int(response.GetChoice()), text, finish, nil))
		}
	}
}

func cancel(ctx context.Context, client *tokenwire.Client) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	prompt := &pb.Prompt{Form: &pb.Prompt_Text{Text: "hang on"}}
	stream := must(client.Generate(ctx, &pb.GenerateRequest{Prompts: []*pb.Prompt{prompt}}))
	must(stream.Recv())
	stop()
	for {
		if _, err := stream.Recv(); err != nil {
			tell(line{"error": told(err)})
			return
		}
	}
}

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

func vectors(folder string) {
	var index []struct{ Name, Message string }
	read := func(name string) []byte { return must(os.ReadFile(filepath.Join(folder, name))) }
	if err := json.Unmarshal(read("index.json"), &index); err != nil {
		log.Fatal(err)
	}
	for _, entry := range index {
		kind := must(protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(entry.Message)))
		message, fromJSON := kind.New().Interface(), kind.New().Interface()
		err := errors.Join(
			proto.Unmarshal(read(entry.Name+".binpb"), message), protojson.Unmarshal(read(entry.Name+".json"), fromJSON),
		)
		if err != nil {
			log.Fatalf("%s: %v", entry.Name, err)
		}
		encoded := base64.StdEncoding.EncodeToString(must(proto.Marshal(message)))
		tell(line{"vector": entry.Name, "encoded": encoded, "json_equal": proto.Equal(message, fromJSON)})
	}
}

func main() {
	name := flag.String("case", "", "the case to run")
	target := flag.String("target", "127.0.0.1:50051", "host:port of the gateway")
	ca := flag.String("tls-ca", "", "use TLS, and trust the certificates in this file")
	key := flag.String("api-key", "", "who calls")
	folder := flag.String("vectors", "", "read the test vectors in this folder instead")
	flag.Parse()
	if *folder != "" {
		vectors(*folder)
		return
	}
	client := must(tokenwire.NewClient(*target, tokenwire.Options{APIKey: *key, TLS: *ca != "", CAFile: *ca}))
	defer client.Close()
	ctx := context.Background()
	switch *name {
	case "generate", "tls":
		generate(ctx, client, options(3), "one two three")
	case "prompts":
		generate(ctx, client, nil, "one two", "lost one")
	case "chat":
		chat(ctx, client)
	case "bad-field":
		generate(ctx, client, nil, "refuse me")
	case "overloaded":
		generate(ctx, client, nil, "overload me")
	case "deadline":
		limited, stop := context.WithTimeout(ctx, 2*time.Second)
		defer stop()
		generate(limited, client, nil, "hang on")
	case "deadline-text":
		generate(ctx, client, nil, "slow words")
	case "cancel":
		cancel(ctx, client)
	default:
		if !onSession(ctx, client, *name) {
			tell(line{"skip": "this program does not know the case " + *name})
		}
	}
}

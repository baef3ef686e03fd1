// Command conformance is what `tokenwire conformance --client` drives: this package through every case.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
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
	case "generate", "tls", "key":
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

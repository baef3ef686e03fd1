// Command example shows what the package does, against a running gateway: go run ./cmd/example [-target HOST:PORT]
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"tokenwire"
	pb "tokenwire/tokenwirev1"
)

func main() {
	target := flag.String("target", "127.0.0.1:50051", "host:port of the gateway")
	ca := flag.String("tls-ca", "", "use TLS, and trust the certificates in this file")
	key := flag.String("api-key", "", "who calls")
	flag.Parse()
	client, err := tokenwire.NewClient(*target, tokenwire.Options{APIKey: *key, TLS: *ca != "", CAFile: *ca})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for _, show := range []func(context.Context, *tokenwire.Client) error{generate, chat, session, deadline, typedError} {
		if err := show(context.Background(), client); err != nil {
			log.Fatal(err)
		}
	}
}

func greedy(maxTokens uint32) *pb.GenerationOptions {
	return &pb.GenerationOptions{
		Sampling: &pb.SamplingParams{Temperature: proto.Float32(0)},
		Stop:     &pb.StopConditions{MaxTokens: &maxTokens},
	}
}

// generate streams the continuation of a prompt.
func generate(ctx context.Context, client *tokenwire.Client) error {
	prompt := &pb.Prompt{Form: &pb.Prompt_Text{Text: "Once upon a time"}}
	stream, err := client.Generate(ctx, &pb.GenerateRequest{Prompts: []*pb.Prompt{prompt}, Options: greedy(16)})
	if err != nil {
		return err
	}
	fmt.Print("generate:")
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		fmt.Print(response.GetDelta().GetText())
		if finish := response.GetFinish(); finish != nil {
			fmt.Printf(" (%s, %d tokens)\n", finish.GetReason(), finish.GetUsage().GetCompletionTokens())
		}
	}
}

// chat answers a conversation.
func chat(ctx context.Context, client *tokenwire.Client) error {
	question := &pb.ChatMessage{Role: "user", Content: "What is the capital of France?"}
	conversation := &pb.Conversation{Messages: []*pb.ChatMessage{question}}
	stream, err := client.Chat(ctx, &pb.ChatRequest{Conversation: conversation, Options: greedy(16)})
	if err != nil {
		return err
	}
	fmt.Print("chat: ")
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			fmt.Println()
			return nil
		} else if err != nil {
			return err
		}
		fmt.Print(response.GetDelta().GetText())
	}
}

// session carries many requests on one stream, one of them with credits, one cancelled.
func session(ctx context.Context, client *tokenwire.Client) error {
	session := client.NewSession(256)
	defer session.Close()
	endless := &pb.TextRequest{
		Input:   &pb.TextRequest_Text{Text: "A story without end"},
		Options: &pb.GenerationOptions{Stop: &pb.StopConditions{IgnoreEos: true}},
	}
	story, err := session.Submit(ctx, endless, proto.Uint32(4)) // at most four tokens wait unread
	if err != nil {
		return err
	}
	var chapters []*tokenwire.Output
	for number := 1; number <= 20; number++ {
		input := &pb.TextRequest_Text{Text: fmt.Sprintf("Chapter %d:", number)}
		outputs, err := session.Submit(ctx, &pb.TextRequest{Input: input, Options: greedy(4)}, nil)
		if err != nil {
			return err
		}
		chapters = append(chapters, outputs...)
	}
	for _, chapter := range chapters {
		if _, _, err := chapter.Wait(ctx); err != nil {
			return err
		}
	}
	if _, err := story[0].Next(ctx); err != nil {
		return err
	}
	story[0].Cancel()
	_, finish, err := story[0].Wait(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("session: %d chapters, the story ended with %s\n", len(chapters), finish.GetReason())
	return nil
}

// deadline ends a call by its own limit; what came until then was read.
func deadline(ctx context.Context, client *tokenwire.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	prompt := &pb.Prompt{Form: &pb.Prompt_Text{Text: "A story without end"}}
	options := &pb.GenerationOptions{Stop: &pb.StopConditions{IgnoreEos: true}}
	stream, err := client.Generate(ctx, &pb.GenerateRequest{Prompts: []*pb.Prompt{prompt}, Options: options})
	for err == nil {
		var response *pb.GenerateResponse
		if response, err = stream.Recv(); response.GetFinish() != nil {
			fmt.Println("deadline:", response.GetFinish().GetReason())
			return nil
		}
	}
	if found := tokenwire.ErrorOf(err); found.Code != codes.DeadlineExceeded {
		return err
	}
	fmt.Println("deadline: DEADLINE_EXCEEDED")
	return nil
}

// typedError reads what a refusal says of the field that is wrong.
func typedError(ctx context.Context, client *tokenwire.Client) error {
	prompt := &pb.Prompt{Form: &pb.Prompt_Text{Text: "Hello"}}
	options := &pb.GenerationOptions{Sampling: &pb.SamplingParams{Temperature: proto.Float32(-1)}}
	stream, err := client.Generate(ctx, &pb.GenerateRequest{Prompts: []*pb.Prompt{prompt}, Options: options})
	if err == nil {
		_, err = stream.Recv()
	}
	found := tokenwire.ErrorOf(err)
	if found == nil || found.Code != codes.InvalidArgument {
		return fmt.Errorf("a temperature below zero was not refused: %w", err)
	}
	fmt.Printf("error: %s, %s, %v\n", found.Code, found.Reason, found.Fields)
	return nil
}

// Shows what the client does, against a running gateway: build/example [--target HOST:PORT] [--tls-ca FILE --api-key KEY]

#include <chrono>
#include <iostream>

#include "arguments.h"
#include "session.h"

namespace v1 = tokenwire::v1;

namespace {

v1::GenerationOptions greedy(std::uint32_t max_tokens) {
  v1::GenerationOptions options;
  options.mutable_sampling()->set_temperature(0);
  options.mutable_stop()->set_max_tokens(max_tokens);
  return options;
}

v1::GenerationOptions endless() {
  v1::GenerationOptions options;
  options.mutable_stop()->set_ignore_eos(true);
  return options;
}

v1::GenerateRequest prompt(const std::string& text, const v1::GenerationOptions& options) {
  v1::GenerateRequest request;
  request.add_prompts()->set_text(text);
  *request.mutable_options() = options;
  return request;
}

void check(const grpc::Status& status) {
  if (!status.ok()) throw tokenwire::error_of(status);
}

void generate(tokenwire::Stub& stub) {
  grpc::ClientContext context;
  auto stream = stub.Generate(&context, prompt("Once upon a time", greedy(16)));
  std::cout << "generate:";
  for (v1::GenerateResponse response; stream->Read(&response);) {
    std::cout << response.delta().text();
    if (response.has_finish()) {
      std::cout << " (" << v1::FinishReason_Name(response.finish().reason()) << ", "
                << response.finish().usage().completion_tokens() << " tokens)\n";
    }
  }
  check(stream->Finish());
}

void chat(tokenwire::Stub& stub) {
  v1::ChatRequest request;
  auto* question = request.mutable_conversation()->add_messages();
  question->set_role("user");
  question->set_content("What is the capital of France?");
  *request.mutable_options() = greedy(16);
  grpc::ClientContext context;
  auto stream = stub.Chat(&context, request);
  std::cout << "chat: ";
  for (v1::ChatResponse response; stream->Read(&response);) std::cout << response.delta().text();
  std::cout << "\n";
  check(stream->Finish());
}

// Many requests on one stream, one of them with credits and cancelled.
void session(tokenwire::Stub& stub) {
  tokenwire::Session session(stub, 256);
  v1::TextRequest request;
  request.set_text("A story without end");
  *request.mutable_options() = endless();
  const auto story = session.submit(request, 4).front();  // at most four tokens wait unread
  tokenwire::Outputs chapters;
  for (int number = 1; number <= 20; ++number) {
    request.set_text("Chapter " + std::to_string(number) + ":");
    *request.mutable_options() = greedy(4);
    chapters.push_back(session.submit(request).front());
  }
  for (const auto& chapter : chapters) chapter->whole();
  story->next();
  story->cancel();
  story->whole();
  std::cout << "session: " << chapters.size() << " chapters, the story ended with "
            << v1::FinishReason_Name(story->finish()->reason()) << "\n";
}

// A deadline ends a call by its own limit.
void deadline(tokenwire::Stub& stub) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  auto stream = stub.Generate(&context, prompt("A story without end", endless()));
  for (v1::GenerateResponse response; stream->Read(&response);) {
    if (response.has_finish()) std::cout << "deadline: " << v1::FinishReason_Name(response.finish().reason()) << "\n";
  }
  const grpc::Status status = stream->Finish();
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    std::cout << "deadline: DEADLINE_EXCEEDED\n";
  } else {
    check(status);
  }
}

// What a refusal says of the field that is wrong.
void typed_error(tokenwire::Stub& stub) {
  v1::GenerationOptions bad;
  bad.mutable_sampling()->set_temperature(-1);
  grpc::ClientContext context;
  auto stream = stub.Generate(&context, prompt("Hello", bad));
  for (v1::GenerateResponse response; stream->Read(&response);) {
  }
  const grpc::Status status = stream->Finish();
  if (status.ok()) throw std::runtime_error("a temperature below zero was not refused");
  const tokenwire::Error error = tokenwire::error_of(status);
  std::cout << "error: " << tokenwire::name_of(error.code) << ", " << error.reason;
  for (const auto& field : error.fields) std::cout << ", " << field;
  std::cout << "\n";
}

}  // namespace

int main(int count, char** values) try {
  const auto stub = Arguments(count, values).connect();
  for (auto show : {generate, chat, session, deadline, typed_error}) show(*stub);
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

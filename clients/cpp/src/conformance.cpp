// What `tokenwire conformance --client` drives: the client through every case.

#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>

#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>
#include <google/protobuf/wrappers.pb.h>

#include "arguments.h"
#include "google/rpc/error_details.pb.h"
#include "session_cases.h"
#include "told.h"

namespace v1 = tokenwire::v1;
namespace pb = google::protobuf;

namespace {

v1::GenerationOptions greedy(std::uint32_t max_tokens) {
  v1::GenerationOptions options;
  options.mutable_sampling()->set_temperature(0);
  options.mutable_stop()->set_max_tokens(max_tokens);
  return options;
}

void generate(tokenwire::Stub& stub, const v1::GenerationOptions& options, const std::vector<std::string>& prompts,
              std::optional<std::chrono::milliseconds> limit = std::nullopt, bool cancels = false) {
  v1::GenerateRequest request;
  *request.mutable_options() = options;
  for (const auto& text : prompts) request.add_prompts()->set_text(text);
  grpc::ClientContext context;
  if (limit) context.set_deadline(std::chrono::system_clock::now() + *limit);
  auto stream = stub.Generate(&context, request);
  std::map<std::uint32_t, std::string> texts;
  for (v1::GenerateResponse response; stream->Read(&response);) {
    texts[response.index()] += response.delta().text();
    if (response.has_finish()) {
      const auto& finish = response.finish();
      tell_output(response.index(), 0, texts[response.index()], finish, tokenwire::error_of(finish));
    }
    if (cancels) context.TryCancel();
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) tell_error(tokenwire::error_of(status));
}

void chat(tokenwire::Stub& stub) {
  v1::ChatRequest request;
  for (const auto& [role, content] : {std::pair{"system", "Be brief."}, std::pair{"user", "one two three"}}) {
    auto* message = request.mutable_conversation()->add_messages();
    message->set_role(role);
    message->set_content(content);
  }
  *request.mutable_options() = greedy(3);
  grpc::ClientContext context;
  auto stream = stub.Chat(&context, request);
  std::string text;
  for (v1::ChatResponse response; stream->Read(&response);) {
    text += response.delta().text();
    if (response.has_finish()) tell_output(0, response.choice(), text, response.finish(), std::nullopt);
  }
  const grpc::Status status = stream->Finish();
  if (!status.ok()) tell_error(tokenwire::error_of(status));
}

bool call(tokenwire::Stub& stub, const std::string& name) {
  const v1::GenerationOptions none;
  const std::map<std::string, std::function<void()>> cases = {
      {"generate", [&] { generate(stub, greedy(3), {"one two three"}); }},
      {"key", [&] { generate(stub, greedy(3), {"one two three"}); }},
      {"tls", [&] { generate(stub, greedy(3), {"one two three"}); }},
      {"prompts", [&] { generate(stub, none, {"one two", "lost one"}); }},
      {"chat", [&] { chat(stub); }},
      {"bad-field", [&] { generate(stub, none, {"refuse me"}); }},
      {"overloaded", [&] { generate(stub, none, {"overload me"}); }},
      {"deadline", [&] { generate(stub, none, {"hang on"}, std::chrono::seconds(2)); }},
      {"deadline-text", [&] { generate(stub, none, {"slow words"}); }},
      {"cancel", [&] { generate(stub, none, {"hang on"}, std::nullopt, true); }},
  };
  const auto found = cases.find(name);
  if (found == cases.end()) return false;
  found->second();
  return true;
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

void vectors(const std::string& folder) {
  google::rpc::ErrorInfo::descriptor();  // its file is linked, so that Any in JSON finds its messages
  pb::ListValue index;
  if (!pb::util::JsonStringToMessage(read(folder + "/index.json"), &index).ok()) throw std::runtime_error("bad index");
  for (const auto& entry : index.values()) {
    const auto& fields = entry.struct_value().fields();
    const std::string name = fields.at("name").string_value();
    const auto* type = pb::DescriptorPool::generated_pool()->FindMessageTypeByName(fields.at("message").string_value());
    const auto* prototype = pb::MessageFactory::generated_factory()->GetPrototype(type);
    const std::unique_ptr<pb::Message> message(prototype->New()), from_json(prototype->New());
    const auto parsed = pb::util::JsonStringToMessage(read(folder + "/" + name + ".json"), from_json.get());
    if (!message->ParseFromString(read(folder + "/" + name + ".binpb")) || !parsed.ok()) {
      throw std::runtime_error(name + " cannot be read");
    }
    Line line;
    set(line, "vector", name);
    pb::BytesValue encoded;  // in JSON: a string in base64
    encoded.set_value(message->SerializeAsString());
    std::string base64;
    if (!pb::util::MessageToJsonString(encoded, &base64).ok()) throw std::runtime_error(name + " cannot be written");
    set(line, "encoded", base64.substr(1, base64.size() - 2));
    const bool equal = pb::util::MessageDifferencer::Equals(*message, *from_json);
    (*line.mutable_fields())["json_equal"].set_bool_value(equal);
    tell(line);
  }
}

}  // namespace

int main(int count, char** values) try {
  const Arguments arguments(count, values);
  if (const std::string folder = arguments.get("--vectors"); !folder.empty()) {
    vectors(folder);
    return 0;
  }
  const auto stub = arguments.connect();
  const std::string name = arguments.get("--case");
  if (!call(*stub, name) && !on_session(*stub, name)) {
    Line line;
    set(line, "skip", "this program does not know the case " + name);
    tell(line);
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}

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
#include "session.h"

namespace v1 = tokenwire::v1;
namespace pb = google::protobuf;

namespace {

using Line = pb::Struct;

void set(Line& line, const std::string& name, const std::string& value) {
  (*line.mutable_fields())[name].set_string_value(value);
}

void set(Line& line, const std::string& name, double value) { (*line.mutable_fields())[name].set_number_value(value); }

void tell(const Line& line) {
  std::string json;
  if (!pb::util::MessageToJsonString(line, &json).ok()) throw std::runtime_error("a line cannot be written");
  std::cout << json << std::endl;
}

Line told(const tokenwire::Error& error) {
  Line found;
  set(found, "code", tokenwire::name_of(error.code));
  set(found, "reason", error.reason);
  auto* fields = (*found.mutable_fields())["fields"].mutable_list_value();
  for (const auto& field : error.fields) fields->add_values()->set_string_value(field);
  if (error.retry_after) set(found, "retry_after_ms", error.retry_after->count());
  return found;
}

void tell_error(const tokenwire::Error& error) {
  Line line;
  *(*line.mutable_fields())["error"].mutable_struct_value() = told(error);
  tell(line);
}

void tell_output(int output, int choice, const std::string& text, const std::optional<v1::Finish>& finish,
                 const std::optional<tokenwire::Error>& error) {
  Line line;
  set(line, "output", output);
  set(line, "choice", choice);
  set(line, "text", text);
  if (finish) {
    const std::string name = v1::FinishReason_Name(finish->reason());
    constexpr std::string_view prefix = "FINISH_REASON_";
    set(line, "reason", name.empty() ? std::to_string(finish->reason()) : name.substr(prefix.size()));
    set(line, "tokens", finish->usage().completion_tokens());
  }
  if (error) *(*line.mutable_fields())["error"].mutable_struct_value() = told(*error);
  tell(line);
}

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

void tell_all(const std::vector<tokenwire::Outputs>& requests) {
  for (std::size_t index = 0; index < requests.size(); ++index) {
    for (std::size_t choice = 0; choice < requests[index].size(); ++choice) {
      tokenwire::Output& output = *requests[index][choice];
      std::optional<tokenwire::Error> error;
      try {
        output.whole();
      } catch (const tokenwire::Error& caught) {
        error = caught;
      }
      tell_output(index, choice, output.text(), output.finish(), error);
    }
  }
}

bool on_session(tokenwire::Stub& stub, const std::string& name) {
  tokenwire::Session session(stub, 1024);
  const auto send = [&](const std::string& text, std::optional<std::uint32_t> credit = std::nullopt,
                        std::uint32_t choices = 0) {
    v1::TextRequest request;
    request.set_text(text);
    if (choices > 0) request.mutable_options()->set_num_choices(choices);
    return session.submit(request, credit);
  };
  const std::map<std::string, std::function<void()>> cases = {
      {"session",
       [&] {
         const auto first = send("one two"), second = send("three");
         tell_all({first, second, send("four five six")});
       }},
      {"session-choices",
       [&] {
         const auto first = send("one two", std::nullopt, 2);
         tell_all({first, send("three")});
       }},
      {"session-cancel",
       [&] {
         const auto hanging = send("hang on"), other = send("one two three");
         hanging.front()->next();
         hanging.front()->cancel();
         tell_all({hanging, other});
       }},
      {"session-credit", [&] { tell_all({send("a b c d e f g h i j", 2)}); }},
      {"session-held",
       [&] {
         const auto held = send("a b", 0), other = send("one two three");
         other.front()->whole();
         held.front()->grant(2);
         tell_all({held, other});
       }},
      {"session-error",
       [&] {
         const auto first = send("refuse me"), second = send("overload me");
         tell_all({first, second, send("one two")});
       }},
      {"session-drain",
       [&] {
         const auto held = send("hold on");
         held.front()->next();  // with this text came the Drain: the next request has a new stream
         tell_all({held, send("one two")});
       }},
      {"session-lost", [&] { tell_all({send("hold on")}); }},
      {"session-future",
       [&] {
         const auto first = send("one two");
         tell_all({first, send("three")});
       }},
      {"session-many",
       [&] {
         std::vector<tokenwire::Outputs> all;
         for (int number = 0; number < 1000; ++number) all.push_back(send("n" + std::to_string(number)));
         tell_all(all);
       }},
  };
  const auto found = cases.find(name);
  if (found == cases.end()) return false;
  found->second();
  return true;
}

bool call(tokenwire::Stub& stub, const std::string& name) {
  const v1::GenerationOptions none;
  const std::map<std::string, std::function<void()>> cases = {
      {"generate", [&] { generate(stub, greedy(3), {"one two three"}); }},
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

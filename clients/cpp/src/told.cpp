#include "told.h"

#include <iostream>

#include <google/protobuf/util/json_util.h>

namespace v1 = tokenwire::v1;
namespace pb = google::protobuf;

void set(Line& line, const std::string& name, const std::string& value) {
  (*line.mutable_fields())[name].set_string_value(value);
}

void set(Line& line, const std::string& name, double value) { (*line.mutable_fields())[name].set_number_value(value); }

void tell(const Line& line) {
  std::string json;
  if (!pb::util::MessageToJsonString(line, &json).ok()) throw std::runtime_error("a line cannot be written");
  std::cout << json << std::endl;
}

namespace {

Line told(const tokenwire::Error& error) {
  Line found;
  set(found, "code", tokenwire::name_of(error.code));
  set(found, "reason", error.reason);
  auto* fields = (*found.mutable_fields())["fields"].mutable_list_value();
  for (const auto& field : error.fields) fields->add_values()->set_string_value(field);
  if (error.retry_after) set(found, "retry_after_ms", error.retry_after->count());
  return found;
}

}  // namespace

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

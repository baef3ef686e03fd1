// What a conformance program tells: JSON, one object a line (docs/conformance.md).
#pragma once

#include <optional>
#include <string>

#include <google/protobuf/struct.pb.h>

#include "error.h"

using Line = google::protobuf::Struct;

void set(Line& line, const std::string& name, const std::string& value);
void set(Line& line, const std::string& name, double value);
void tell(const Line& line);
void tell_error(const tokenwire::Error& error);
void tell_output(int output, int choice, const std::string& text, const std::optional<tokenwire::v1::Finish>& finish,
                 const std::optional<tokenwire::Error>& error);

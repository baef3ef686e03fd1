// What ended a call, or an output, with the details that a server sends.
#pragma once

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <grpcpp/support/status.h>

#include "tokenwire/v1/common.pb.h"

namespace tokenwire {

struct Error : std::runtime_error {
  Error(grpc::StatusCode code, const std::string& message, std::string reason = "");

  grpc::StatusCode code;
  // A stable string that programs may compare.
  std::string reason;
  // The wrong ones, by their path in the request.
  std::vector<std::string> fields;
  // When another try may succeed.
  std::optional<std::chrono::milliseconds> retry_after;
};

// A value that is not sent.
Error refused(const std::string& field, const std::string& said);

// The error of a call that did not end with OK.
Error error_of(const grpc::Status& status);

// The error inside a terminal event, where there is one.
std::optional<Error> error_of(const v1::Finish& finish);

// INVALID_ARGUMENT and so on.
std::string name_of(grpc::StatusCode code);

}  // namespace tokenwire

#include "error.h"

#include <array>
#include <utility>

#include "google/rpc/error_details.pb.h"

namespace tokenwire {
namespace {

Error with_details(const v1::Status& status) {
  Error error(static_cast<grpc::StatusCode>(status.code()), status.message());
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad;
  google::rpc::RetryInfo retry;
  for (const auto& detail : status.details()) {
    if (detail.UnpackTo(&info)) {
      error.reason = info.reason();
    } else if (detail.UnpackTo(&bad)) {
      for (const auto& violation : bad.field_violations()) error.fields.push_back(violation.field());
    } else if (detail.UnpackTo(&retry)) {
      const auto& delay = retry.retry_delay();
      error.retry_after = std::chrono::milliseconds(delay.seconds() * 1000 + delay.nanos() / 1'000'000);
    }
  }
  return error;
}

}  // namespace

Error::Error(grpc::StatusCode code, const std::string& message, std::string reason)
    : std::runtime_error(message), code(code), reason(std::move(reason)) {}

Error refused(const std::string& field, const std::string& said) {
  Error error(grpc::StatusCode::INVALID_ARGUMENT, field + ": " + said, "INVALID_REQUEST");
  error.fields.push_back(field);
  return error;
}

Error error_of(const grpc::Status& status) {
  v1::Status details;  // field for field a google.rpc.Status
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) return with_details(details);
  return Error(status.error_code(), status.error_message());
}

std::optional<Error> error_of(const v1::Finish& finish) {
  if (!finish.has_error()) return std::nullopt;
  return with_details(finish.error());
}

std::string name_of(grpc::StatusCode code) {
  static const std::array<const char*, 17> names = {
      "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
      "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
      "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"};
  const auto number = static_cast<std::size_t>(code);
  return number < names.size() ? names[number] : std::to_string(number);
}

}  // namespace tokenwire

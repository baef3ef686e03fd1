// A connection to a gateway: the generated stub, TLS and an API key.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "tokenwire/v1/gateway.grpc.pb.h"

namespace tokenwire {

using Stub = v1::GenerationService::Stub;

struct Options {
  // Use TLS.
  bool tls = false;
  // A file of the certificates to trust; empty: those that gRPC finds.
  std::string ca_file;
  // An API key or a JWT, sent with every call: over TLS, or to this machine itself.
  std::string api_key;
  // Let the key go to other machines without TLS, where something else encrypts the way.
  bool plaintext_key = false;
};

// A stub for host:port. It connects with the first call. Throws Error for a key that would go out unencrypted, or
// that no header may hold, and std::runtime_error.
std::unique_ptr<Stub> connect(const std::string& target, const Options& options = {});

}  // namespace tokenwire

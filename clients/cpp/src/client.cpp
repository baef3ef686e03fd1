#include "client.h"

#include <arpa/inet.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include <grpcpp/support/client_interceptor.h>

#include "error.h"

namespace tokenwire {
namespace {

constexpr int kMaxMessageBytes = 16 << 20;
constexpr int kKeepaliveMs = 20'000;         // without a sign of the server, until it is asked for one
constexpr int kKeepaliveTimeoutMs = 10'000;  // and then, until it is given up

// Adds the API key to every call.
class Bearer : public grpc::experimental::Interceptor {
 public:
  explicit Bearer(std::string value) : value_(std::move(value)) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", value_});
    }
    methods->Proceed();
  }

 private:
  const std::string value_;
};

class Bearers : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit Bearers(const std::string& key) : value_("Bearer " + key) {}

  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo*) override {
    return new Bearer(value_);
  }

 private:
  const std::string value_;
};

bool is_loopback(const std::string& host) {
  in_addr four{};
  in6_addr six{};
  if (inet_pton(AF_INET, host.c_str(), &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
  return host == "localhost" || (inet_pton(AF_INET6, host.c_str(), &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six));
}

// Whether all addresses of gRPC's target are this machine's, as it is written: names are not looked up.
bool stays_here(const std::string& target) {
  if (target.starts_with("unix:") || target.starts_with("unix-abstract:")) return true;
  std::string rest = target;
  for (const std::string scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (rest.starts_with(scheme)) rest.erase(0, scheme.size());
  }
  std::istringstream addresses(rest);
  for (std::string address; std::getline(addresses, address, ',');) {
    const auto colon = address.rfind(':');
    std::string host = colon == std::string::npos ? "" : address.substr(0, colon);
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    if (!is_loopback(host)) return false;
  }
  return !rest.empty();
}

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

}  // namespace

std::unique_ptr<Stub> connect(const std::string& target, const Options& options) {
  if (!options.tls && !options.api_key.empty() && !options.plaintext_key && !stays_here(target)) {
    throw Error(grpc::StatusCode::FAILED_PRECONDITION,
                "the key would go to " + target + " unencrypted: set tls, or plaintext_key where the way is encrypted",
                "KEY_IN_PLAINTEXT");
  }
  if (!std::all_of(options.api_key.begin(), options.api_key.end(), [](char each) { return each >= '!' && each <= '~'; })) {
    throw refused("api_key", "only visible ASCII characters are allowed, and no white space");
  }
  auto credentials = grpc::InsecureChannelCredentials();
  if (options.tls) {
    grpc::SslCredentialsOptions ssl;
    if (!options.ca_file.empty()) ssl.pem_root_certs = content_of(options.ca_file);
    credentials = grpc::SslCredentials(ssl);
  }
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!options.api_key.empty()) interceptors.push_back(std::make_unique<Bearers>(options.api_key));
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt("grpc.http2.ping_timeout_ms", kKeepaliveTimeoutMs);  // newer releases would wait for a minute
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return v1::GenerationService::NewStub(grpc::experimental::CreateCustomChannelWithInterceptors(
      target, credentials, arguments, std::move(interceptors)));
}

}  // namespace tokenwire

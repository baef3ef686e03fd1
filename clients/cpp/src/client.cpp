#include "client.h"

#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace tokenwire {
namespace {

constexpr int kMaxMessageBytes = 16 << 20;

class Bearer : public grpc::MetadataCredentialsPlugin {
 public:
  explicit Bearer(const std::string& key) : value_("Bearer " + key) {}

  grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                           std::multimap<grpc::string, grpc::string>* metadata) override {
    metadata->insert({"authorization", value_});
    return grpc::Status::OK;
  }

 private:
  std::string value_;
};

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

}  // namespace

std::unique_ptr<Stub> connect(const std::string& target, const Options& options) {
  if (!options.tls && !options.api_key.empty()) {
    throw std::invalid_argument("an API key is sent over TLS only: set tls");
  }
  auto credentials = grpc::InsecureChannelCredentials();
  if (options.tls) {
    grpc::SslCredentialsOptions ssl;
    if (!options.ca_file.empty()) ssl.pem_root_certs = content_of(options.ca_file);
    credentials = grpc::SslCredentials(ssl);
    if (!options.api_key.empty()) {
      credentials = grpc::CompositeChannelCredentials(
          credentials, grpc::MetadataCredentialsFromPlugin(std::make_unique<Bearer>(options.api_key)));
    }
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::GenerationService::NewStub(grpc::CreateCustomChannel(target, credentials, arguments));
}

}  // namespace tokenwire

// Options of the programs, each with a value: --target, --tls-ca, --api-key and what a program adds.
#pragma once

#include <map>
#include <string>

#include "client.h"

class Arguments {
 public:
  Arguments(int count, char** values) {
    for (int i = 1; i + 1 < count; i += 2) values_[values[i]] = values[i + 1];
  }

  std::string get(const std::string& name, const std::string& otherwise = "") const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : found->second;
  }

  std::unique_ptr<tokenwire::Stub> connect() const {
    tokenwire::Options options;
    options.tls = values_.count("--tls-ca") > 0;
    options.ca_file = get("--tls-ca");
    options.api_key = get("--api-key");
    return tokenwire::connect(get("--target", "127.0.0.1:50051"), options);
  }

 private:
  std::map<std::string, std::string> values_;
};

// One stream of a session: its handles, who reads them, and what waits to go up.
#pragma once

#include <condition_variable>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>

#include "session.h"

namespace tokenwire {

class Link : public std::enable_shared_from_this<Link> {
 public:
  // Opens the stream, and does not wait for it.
  explicit Link(Session& session);

  // Cancels what is open and waits for the threads. To be called before the last owner is gone, and without the session's mutex.
  void stop();

  // With the session's mutex held:
  Outputs submit(const v1::TextRequest& request, std::size_t number, std::optional<std::uint32_t> credit,
                 const Limit& limit);
  void cancel(std::uint32_t handle);
  void grant(std::uint32_t handle, std::uint32_t tokens);

  Session& session;  // gone when the threads are
  const std::shared_ptr<std::mutex> mutex;

  // Guarded by the session's mutex:
  std::optional<v1::Hello> hello;
  std::optional<Error> ended;
  bool left = false;  // new requests go elsewhere

 private:
  v1::SessionRequest& frame(std::size_t bytes);
  void read();
  void write();
  void take(const v1::SessionResponse& frame);
  void lose(const Error& why);
  void refuse(const std::string& message, const std::string& reason);

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionResponse>> stream_;
  std::unordered_map<std::uint32_t, std::shared_ptr<Output>> outputs_;
  std::uint64_t next_ = 1;
  std::deque<v1::SessionRequest> pending_;  // frames to be sent; the last is being filled
  std::size_t filled_ = 0;                  // bytes of the last, about
  std::condition_variable wake_;
  bool began_ = false;  // Hello was written, or could not be
  std::thread reader_, writer_;
};

}  // namespace tokenwire

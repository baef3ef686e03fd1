// Many requests on one stream: docs/session.md of Tokenwire.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client.h"
#include "error.h"

namespace tokenwire {

class Link;
class Session;

// New text, and the tokens that stand behind it.
struct Delta {
  std::string text;
  std::uint32_t num_tokens = 0;
};

// When a request's time is over, by this side's clock; nothing: never.
using Limit = std::optional<std::chrono::steady_clock::time_point>;

// One output of a request on a session. It is read by one thread; any may cancel it or grant it more. What is dropped before it
// has ended is cancelled.
class Output {
 public:
  // Waits for more text; nothing after the last. Throws the Error that broke the stream.
  std::optional<Delta> next();

  // Reads to the end and returns all text; throws the Error that the output, or its stream, ended with.
  std::string whole();

  // All text that was read.
  const std::string& text() const { return text_; }

  // How it ended; nothing until then.
  std::optional<v1::Finish> finish() const;

  // Takes it back. Its end still comes: CANCELLED, if nothing else was first.
  void cancel();

  // Lets the server send more tokens than reading has granted.
  void grant(std::uint32_t tokens);

 private:
  friend class Link;
  Output(std::shared_ptr<Link> link, std::uint32_t handle, std::optional<std::uint32_t> credit, const Limit& limit);

  // With the session's mutex held:
  bool add(Delta delta);  // false for more tokens than were granted
  void end(const v1::Finish& finish);
  void lose(const Error& why);
  void end_late();
  void grant_more(std::uint32_t tokens);

  const std::shared_ptr<Link> link_;
  const std::uint32_t handle_;
  const std::uint32_t window_;
  const Limit until_;  // when the server's end has not come in time
  std::string text_;
  std::uint32_t taken_ = 0;  // read and not granted anew

  // Guarded by the session's mutex:
  std::condition_variable ready_;
  std::deque<Delta> waiting_;
  std::uint32_t came_ = 0;
  std::optional<std::uint64_t> may_come_;  // granted, and not come; nothing: no limit
  std::optional<v1::Finish> finish_;
  std::optional<Error> lost_;
};

using Outputs = std::vector<std::shared_ptr<Output>>;

// Keeps no more open than both sides allow, and goes on with a new stream when the server drains. What was on a stream that breaks
// fails with its status. Threads may share it. Its end cancels what is open.
class Session {
 public:
  Session(Stub& stub, std::size_t max_open);
  ~Session();

  // Sends a request and returns its outputs, one per choice. Waits while there is no room, as long as the request's own time limit
  // says. Credit: most tokens of an output that are sent before they are read; reading grants more, unless it is 0. Nothing: no
  // limit. Throws Error.
  Outputs submit(const v1::TextRequest& request, std::optional<std::uint32_t> credit = std::nullopt);

 private:
  friend class Link;

  void forget_ended(std::unique_lock<std::mutex>& lock);

  Stub& stub_;
  const std::size_t max_open_;
  const std::shared_ptr<std::mutex> mutex_ = std::make_shared<std::mutex>();  // outputs may outlive the session
  std::condition_variable room_;
  std::list<std::shared_ptr<Link>> links_;  // that have not ended, or not been seen to
  std::shared_ptr<Link> current_;
  std::size_t open_ = 0;
};

}  // namespace tokenwire

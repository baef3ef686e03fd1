#include "link.h"

#include <algorithm>

namespace tokenwire {
namespace {

constexpr std::uint32_t kProtocolVersion = 1;
constexpr std::uint64_t kLastFirstHandle = (std::uint64_t{1} << 32) - 1 - 1024;  // past it a new stream takes over
constexpr std::size_t kMaxFrameBytes = 512 << 10;  // a frame takes nothing more past it; a larger Submit goes alone
constexpr std::size_t kSmallBytes = 16;            // of a Cancel or a Credit, at most

}  // namespace

Link::Link(Session& session) : session(session), mutex(session.mutex_) {
  context_.set_initial_metadata_corked(true);  // goes with Hello, from the writer's thread
  stream_ = session.stub_.Session(&context_);
  reader_ = std::thread(&Link::read, this);
  writer_ = std::thread(&Link::write, this);
}

void Link::stop() {
  context_.TryCancel();
  reader_.join();
  {
    std::lock_guard lock(*mutex);
    wake_.notify_all();
  }
  writer_.join();
}

Outputs Link::submit(const v1::TextRequest& request, std::size_t number, std::optional<std::uint32_t> credit,
                     const Limit& limit) {
  Outputs found;
  v1::Submit submit;
  submit.set_handle(static_cast<std::uint32_t>(next_));
  *submit.mutable_request() = request;
  if (limit) {
    const auto left_ms = std::chrono::duration_cast<std::chrono::milliseconds>(*limit - std::chrono::steady_clock::now());
    submit.mutable_request()->mutable_context()->set_timeout_ms(std::max<std::int64_t>(1, left_ms.count()));
  }
  if (credit) submit.set_initial_credit(*credit);
  *frame(submit.ByteSizeLong()).add_submits() = std::move(submit);
  for (std::size_t choice = 0; choice < number; ++choice) {
    const auto handle = static_cast<std::uint32_t>(next_ + choice);
    const std::shared_ptr<Output> output(new Output(shared_from_this(), handle, credit, limit));
    outputs_[handle] = output;
    found.emplace_back(output.get(), [output](Output*) { output->cancel(); });
  }
  next_ += number;
  left = left || next_ > kLastFirstHandle;
  return found;
}

void Link::cancel(std::uint32_t handle) {
  if (!outputs_.contains(handle)) return;
  auto* cancel = frame(kSmallBytes).add_cancels();
  cancel->set_handle(handle);
  cancel->set_reason(v1::CANCEL_REASON_CLIENT);
}

void Link::grant(std::uint32_t handle, std::uint32_t tokens) {
  if (!outputs_.contains(handle)) return;
  auto* credit = frame(kSmallBytes).add_credits();
  credit->set_handle(handle);
  credit->set_tokens(tokens);
}

// The frame that has room for so much more, and is sent soon.
v1::SessionRequest& Link::frame(std::size_t bytes) {
  if (pending_.empty() || filled_ + bytes > kMaxFrameBytes) {
    pending_.emplace_back();
    filled_ = 0;
  }
  filled_ += bytes;
  wake_.notify_all();
  return pending_.back();
}

// Hello, then frames of what was asked for since the last one; half-closes once the link is left and nothing is open.
void Link::write() {
  v1::SessionRequest hello;
  hello.mutable_hello()->set_protocol_version(kProtocolVersion);
  hello.mutable_hello()->set_peer("tokenwire-cpp");
  const bool written = stream_->Write(hello);
  std::unique_lock lock(*mutex);
  began_ = true;
  wake_.notify_all();
  if (!written) return;  // the reader says why
  for (;;) {
    wake_.wait(lock, [this] { return !pending_.empty() || ended || (left && outputs_.empty()); });
    if (ended) return;
    std::deque<v1::SessionRequest> frames;
    frames.swap(pending_);
    const bool done = left && outputs_.empty();
    lock.unlock();
    const bool good = std::all_of(frames.begin(), frames.end(), [this](const auto& each) { return stream_->Write(each); });
    if (done) stream_->WritesDone();
    if (!good || done) return;
    lock.lock();
  }
}

void Link::read() {
  {
    std::unique_lock lock(*mutex);
    wake_.wait(lock, [this] { return began_; });
  }
  v1::SessionResponse frame;
  while (stream_->Read(&frame)) {
    std::lock_guard lock(*mutex);
    take(frame);
  }
  const grpc::Status status = stream_->Finish();
  std::lock_guard lock(*mutex);
  lose(status.ok() ? Error(grpc::StatusCode::UNAVAILABLE, "the server ended the session", "SESSION_ENDED")
                   : error_of(status));
}

// Hands each row, then each end, to whom it is for.
void Link::take(const v1::SessionResponse& frame) {
  if (frame.texts_size() != frame.handles_size() || frame.num_tokens_size() != frame.handles_size()) {
    refuse("a frame came whose columns differ in length", "BAD_FRAME");
    return;
  }
  if (frame.has_hello()) {
    if (frame.hello().protocol_version() == kProtocolVersion) {
      hello = frame.hello();
    } else {
      lose(Error(grpc::StatusCode::FAILED_PRECONDITION, "the server speaks another session protocol", "PROTOCOL_VERSION"));
      context_.TryCancel();
    }
    session.room_.notify_all();
  }
  for (int row = 0; row < frame.handles_size(); ++row) {
    const auto found = outputs_.find(frame.handles(row));
    if (found != outputs_.end() && !found->second->add({frame.texts(row), frame.num_tokens(row)})) {
      const std::string handle = std::to_string(frame.handles(row));
      refuse("handle " + handle + ": tokens came that were not granted", "CREDIT_EXCEEDED");
      return;
    }
  }
  for (const auto& finish : frame.finishes()) {
    if (auto found = outputs_.find(finish.handle()); found != outputs_.end()) {
      found->second->end(finish);
      outputs_.erase(found);
      --session.open_;
    }
  }
  left = left || frame.has_drain();
  if (frame.finishes_size() > 0 || frame.has_drain()) session.room_.notify_all();
  if (left) wake_.notify_all();
}

// Ends the stream for what the protocol forbids.
void Link::refuse(const std::string& message, const std::string& reason) {
  lose(Error(grpc::StatusCode::INTERNAL, message, reason));
  context_.TryCancel();
}

void Link::lose(const Error& why) {
  if (ended) return;
  left = true;
  ended = why;
  for (auto& [handle, output] : outputs_) {
    output->lose(why);
  }
  session.open_ -= outputs_.size();
  outputs_.clear();
  session.room_.notify_all();
  wake_.notify_all();
}

}  // namespace tokenwire

#include "session.h"

#include <algorithm>

#include "link.h"

namespace tokenwire {
namespace {

constexpr std::uint32_t kProtocolVersion = 1;
constexpr std::uint64_t kLastFirstHandle = (std::uint64_t{1} << 32) - 1 - 1024;  // past it a new stream takes over

}  // namespace

Session::Session(Stub& stub, std::size_t max_open) : stub_(stub), max_open_(max_open) {}

Session::~Session() {
  for (const auto& link : links_) link->stop();
}

Outputs Session::submit(const v1::TextRequest& request, std::optional<std::uint32_t> credit) {
  const std::size_t number = std::max(1u, request.options().num_choices());
  std::unique_lock lock(mutex_);
  forget_ended(lock);
  for (;;) {
    if (current_ == nullptr || current_->left) {
      open(lock);
      continue;
    }
    const std::shared_ptr<Link> link = current_;
    room_.wait(lock, [&link] { return link->hello || link->ended; });
    if (link->ended) {
      if (link->hello) continue;  // it was good and is over: another stream
      throw *link->ended;
    }
    if (link != current_ || link->left) continue;
    const std::size_t most = link->hello->max_requests();
    const std::size_t limit = most > 0 ? std::min(max_open_, most) : max_open_;
    if (number > limit) throw std::invalid_argument("more choices than may be open at once");
    if (open_ + number <= limit) {
      open_ += number;
      return link->submit(request, number, credit);
    }
    room_.wait(lock);
  }
}

// Opens the next stream, or waits for the thread that does.
void Session::open(std::unique_lock<std::mutex>& lock) {
  if (opening_) {
    room_.wait(lock, [this] { return !opening_; });
    return;
  }
  opening_ = true;
  lock.unlock();
  std::shared_ptr<Link> link;
  try {
    link = std::make_shared<Link>(*this);
  } catch (...) {
    lock.lock();
    opening_ = false;
    room_.notify_all();
    throw;
  }
  lock.lock();
  opening_ = false;
  links_.push_back(link);
  current_ = link;
  room_.notify_all();
}

// Joins the threads of streams that are over. Their outputs may still be read.
void Session::forget_ended(std::unique_lock<std::mutex>& lock) {
  std::list<std::shared_ptr<Link>> ended;
  for (auto link = links_.begin(); link != links_.end();) {
    const auto here = link++;
    if ((*here)->ended) ended.splice(ended.end(), links_, here);
  }
  lock.unlock();
  for (const auto& link : ended) link->stop();
  lock.lock();
}

Link::Link(Session& session) : session(session), stream_(session.stub_.Session(&context_)) {
  reader_ = std::thread(&Link::read, this);
  writer_ = std::thread(&Link::write, this);
}

void Link::stop() {
  context_.TryCancel();
  reader_.join();
  {
    std::lock_guard lock(session.mutex_);
    wake_.notify_all();
  }
  writer_.join();
}

Outputs Link::submit(const v1::TextRequest& request, std::size_t number, std::optional<std::uint32_t> credit) {
  Outputs found;
  auto* submit = pending_.add_submits();
  submit->set_handle(static_cast<std::uint32_t>(next_));
  *submit->mutable_request() = request;
  if (credit) submit->set_initial_credit(*credit);
  for (std::size_t choice = 0; choice < number; ++choice) {
    const auto handle = static_cast<std::uint32_t>(next_ + choice);
    found.push_back(std::shared_ptr<Output>(new Output(shared_from_this(), handle, credit.value_or(0))));
    outputs_[handle] = found.back();
  }
  next_ += number;
  left = left || next_ > kLastFirstHandle;
  wake_.notify_all();
  return found;
}

void Link::cancel(std::uint32_t handle) {
  if (!outputs_.contains(handle)) return;
  auto* cancel = pending_.add_cancels();
  cancel->set_handle(handle);
  cancel->set_reason(v1::CANCEL_REASON_CLIENT);
  wake_.notify_all();
}

void Link::grant(std::uint32_t handle, std::uint32_t tokens) {
  if (!outputs_.contains(handle)) return;
  auto* credit = pending_.add_credits();
  credit->set_handle(handle);
  credit->set_tokens(tokens);
  wake_.notify_all();
}

// Hello, then frames of what was asked for since the last one; half-closes once the link is left and nothing is open.
void Link::write() {
  v1::SessionRequest hello;
  hello.mutable_hello()->set_protocol_version(kProtocolVersion);
  hello.mutable_hello()->set_peer("tokenwire-cpp");
  if (!stream_->Write(hello)) return;  // the reader says why
  std::unique_lock lock(session.mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return pending_.ByteSizeLong() > 0 || ended || (left && outputs_.empty()); });
    if (ended) return;
    v1::SessionRequest frame;
    frame.Swap(&pending_);
    const bool done = left && outputs_.empty();
    lock.unlock();
    const bool good = frame.ByteSizeLong() == 0 || stream_->Write(frame);
    if (done) stream_->WritesDone();
    if (!good || done) return;
    lock.lock();
  }
}

void Link::read() {
  v1::SessionResponse frame;
  while (stream_->Read(&frame)) {
    std::lock_guard lock(session.mutex_);
    take(frame);
  }
  const grpc::Status status = stream_->Finish();
  std::lock_guard lock(session.mutex_);
  lose(status.ok() ? Error(grpc::StatusCode::UNAVAILABLE, "the server ended the session", "SESSION_ENDED")
                   : error_of(status));
}

// Hands each row, then each end, to whom it is for.
void Link::take(const v1::SessionResponse& frame) {
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
    if (auto found = outputs_.find(frame.handles(row)); found != outputs_.end()) {
      found->second->waiting_.push_back({frame.texts(row), frame.num_tokens(row)});
      found->second->ready_.notify_all();
    }
  }
  for (const auto& finish : frame.finishes()) {
    if (auto found = outputs_.find(finish.handle()); found != outputs_.end()) {
      found->second->finish_ = finish;
      found->second->ready_.notify_all();
      outputs_.erase(found);
      --session.open_;
    }
  }
  left = left || frame.has_drain();
  if (frame.finishes_size() > 0 || frame.has_drain()) session.room_.notify_all();
  if (left) wake_.notify_all();
}

void Link::lose(const Error& why) {
  if (ended) return;
  left = true;
  ended = why;
  for (auto& [handle, output] : outputs_) {
    output->lost_ = why;
    output->ready_.notify_all();
  }
  session.open_ -= outputs_.size();
  outputs_.clear();
  session.room_.notify_all();
  wake_.notify_all();
}

}  // namespace tokenwire

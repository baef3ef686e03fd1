#include "session.h"

#include <algorithm>

#include "link.h"
#include "text.h"
#include "waiting.h"

namespace tokenwire {
namespace {

constexpr std::size_t kMaxChoices = 128;
constexpr std::uint64_t kNeverMs = std::uint64_t{1} << 40;  // longer than anybody waits

Limit limit_of(const v1::TextRequest& request) {
  if (!request.context().has_timeout_ms()) return std::nullopt;
  const std::uint64_t left_ms = request.context().timeout_ms();
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(std::min(left_ms, kNeverMs));
}

Error too_many_choices(std::size_t number, std::size_t most) {
  const std::string said = std::to_string(number) + " is not allowed: at most " + std::to_string(most);
  return refused("options.num_choices", said + " outputs may be open here");
}

Error out_of_time() {
  return Error(grpc::StatusCode::DEADLINE_EXCEEDED,
               "the time ran out while the request waited for room on the session", "DEADLINE_EXCEEDED");
}

}  // namespace

Session::Session(Stub& stub, std::size_t max_open) : stub_(stub), max_open_(max_open) {}

Session::~Session() {
  for (const auto& link : links_) link->stop();
}

Outputs Session::submit(const v1::TextRequest& request, std::optional<std::uint32_t> credit) {
  const std::size_t number = std::max(1u, request.options().num_choices());
  if (number > kMaxChoices) throw too_many_choices(number, kMaxChoices);
  refuse_bad_text(request);
  const Limit limit = limit_of(request);
  std::unique_lock lock(*mutex_);
  forget_ended(lock);
  for (;;) {
    if (current_ == nullptr || current_->left) {
      current_ = links_.emplace_back(std::make_shared<Link>(*this));
    }
    const std::shared_ptr<Link> link = current_;
    if (!wait(room_, lock, limit, [&link] { return link->hello || link->ended; })) throw out_of_time();
    if (link->ended) {
      if (link->hello) continue;  // it was good and is over: another stream
      throw *link->ended;
    }
    if (link != current_ || link->left) continue;
    const std::size_t theirs = link->hello->max_requests();
    const std::size_t most = theirs > 0 ? std::min(max_open_, theirs) : max_open_;
    if (number > most) throw too_many_choices(number, most);
    if (open_ + number <= most) {
      open_ += number;
      return link->submit(request, number, credit, limit);
    }
    const auto changed = [&] { return link != current_ || link->left || open_ + number <= most; };
    if (!wait(room_, lock, limit, changed)) throw out_of_time();
  }
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

}  // namespace tokenwire

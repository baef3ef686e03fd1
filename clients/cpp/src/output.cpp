#include <algorithm>

#include "link.h"
#include "waiting.h"

namespace tokenwire {
namespace {

// So much longer than a request's time limit its end is waited for: the server's own may be on its way.
constexpr std::chrono::seconds kLate{1};

}  // namespace

Output::Output(std::shared_ptr<Link> link, std::uint32_t handle, std::optional<std::uint32_t> credit, const Limit& limit)
    : link_(std::move(link)),
      handle_(handle),
      window_(credit.value_or(0)),
      until_(limit ? Limit(*limit + kLate) : std::nullopt),
      may_come_(credit) {}

std::optional<Delta> Output::next() {
  Delta delta;
  {
    std::unique_lock lock(*link_->mutex);
    if (!wait(ready_, lock, until_, [this] { return !waiting_.empty() || finish_ || lost_; })) end_late();
    if (waiting_.empty()) {
      if (!finish_) throw *lost_;
      return std::nullopt;
    }
    delta = std::move(waiting_.front());
    waiting_.pop_front();
    taken_ += delta.num_tokens;
    if (window_ > 0 && taken_ >= std::max(1u, window_ / 2)) {
      grant_more(taken_);
      taken_ = 0;
    }
  }
  text_ += delta.text;
  return delta;
}

std::string Output::whole() {
  while (next()) {
  }
  if (auto error = error_of(*finish())) throw *error;
  return text_;
}

std::optional<v1::Finish> Output::finish() const {
  std::lock_guard lock(*link_->mutex);
  return finish_;
}

void Output::cancel() {
  std::lock_guard lock(*link_->mutex);
  link_->cancel(handle_);
}

void Output::grant(std::uint32_t tokens) {
  std::lock_guard lock(*link_->mutex);
  grant_more(tokens);
}

void Output::grant_more(std::uint32_t tokens) {
  if (may_come_) *may_come_ += tokens;
  link_->grant(handle_, tokens);
}

bool Output::add(Delta delta) {
  if (may_come_) {
    if (delta.num_tokens > *may_come_) return false;
    *may_come_ -= delta.num_tokens;
  }
  came_ += delta.num_tokens;
  if (!finish_) {  // else it was over by this side's clock
    waiting_.push_back(std::move(delta));
    ready_.notify_all();
  }
  return true;
}

void Output::end(const v1::Finish& finish) {
  if (!finish_) finish_ = finish;
  ready_.notify_all();
}

void Output::lose(const Error& why) {
  if (!finish_) lost_ = why;
  ready_.notify_all();
}

// What came stands; the server is told, and frees the place.
void Output::end_late() {
  link_->cancel(handle_);
  v1::Finish late;
  late.set_handle(handle_);
  late.set_reason(v1::FINISH_REASON_DEADLINE);
  late.mutable_usage()->set_completion_tokens(came_);
  end(late);
}

}  // namespace tokenwire

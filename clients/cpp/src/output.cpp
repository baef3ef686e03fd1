#include <algorithm>

#include "link.h"

namespace tokenwire {

std::optional<Delta> Output::next() {
  Delta delta;
  {
    std::unique_lock lock(link_->session.mutex_);
    ready_.wait(lock, [this] { return !waiting_.empty() || finish_ || lost_; });
    if (waiting_.empty()) {
      if (!finish_) throw *lost_;
      return std::nullopt;
    }
    delta = std::move(waiting_.front());
    waiting_.pop_front();
    taken_ += delta.num_tokens;
    if (window_ > 0 && taken_ >= std::max(1u, window_ / 2)) {
      link_->grant(handle_, taken_);
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
  std::lock_guard lock(link_->session.mutex_);
  return finish_;
}

void Output::cancel() {
  std::lock_guard lock(link_->session.mutex_);
  link_->cancel(handle_);
}

void Output::grant(std::uint32_t tokens) {
  std::lock_guard lock(link_->session.mutex_);
  link_->grant(handle_, tokens);
}

}  // namespace tokenwire

// Waiting for a condition no longer than a limit says.
#pragma once

#include "session.h"

namespace tokenwire {

// False where `holds` does not hold when the time is over.
template <class Holds>
bool wait(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, const Limit& until, Holds holds) {
  if (until) return changed.wait_until(lock, *until, holds);
  changed.wait(lock, holds);
  return true;
}

}  // namespace tokenwire

#include "session_cases.h"

#include <functional>
#include <map>

#include "session.h"
#include "told.h"

namespace v1 = tokenwire::v1;

namespace {

void tell_all(const std::vector<tokenwire::Outputs>& requests) {
  for (std::size_t index = 0; index < requests.size(); ++index) {
    for (std::size_t choice = 0; choice < requests[index].size(); ++choice) {
      tokenwire::Output& output = *requests[index][choice];
      std::optional<tokenwire::Error> error;
      try {
        output.whole();
      } catch (const tokenwire::Error& caught) {
        error = caught;
      }
      tell_output(index, choice, output.text(), output.finish(), error);
    }
  }
}

void tell_second(const tokenwire::Outputs& outputs) {
  const std::string text = outputs.front()->whole();
  tell_output(1, 0, text, outputs.front()->finish(), std::nullopt);
}

v1::TextRequest limited(const std::string& text, std::uint64_t timeout_ms) {
  v1::TextRequest request;
  request.set_text(text);
  request.mutable_context()->set_timeout_ms(timeout_ms);
  return request;
}

// Submits a case's first request, which may be refused before it has outputs, and tells how that ended.
void try_submit(tokenwire::Session& session, const v1::TextRequest& request) {
  tokenwire::Outputs outputs;
  try {
    outputs = session.submit(request);
  } catch (const tokenwire::Error& error) {
    tell_output(0, 0, "", std::nullopt, error);
    return;
  }
  tell_all({outputs});
}

}  // namespace

bool on_session(tokenwire::Stub& stub, const std::string& name) {
  tokenwire::Session session(stub, 1024);
  const auto send = [&](const std::string& text, std::optional<std::uint32_t> credit = std::nullopt,
                        std::uint32_t choices = 0) {
    v1::TextRequest request;
    request.set_text(text);
    if (choices > 0) request.mutable_options()->set_num_choices(choices);
    return session.submit(request, credit);
  };
  const std::map<std::string, std::function<void()>> cases = {
      {"session",
       [&] {
         const auto first = send("one two"), second = send("three");
         tell_all({first, second, send("four five six")});
       }},
      {"session-choices",
       [&] {
         const auto first = send("one two", std::nullopt, 2);
         tell_all({first, send("three")});
       }},
      {"session-cancel",
       [&] {
         const auto hanging = send("hang on"), other = send("one two three");
         hanging.front()->next();
         hanging.front()->cancel();
         tell_all({hanging, other});
       }},
      {"session-leave",
       [&] {
         send("hang on").front()->next();
         tell_second(send("one two"));
       }},
      {"session-credit", [&] { tell_all({send("a b c d e f g h i j", 2)}); }},
      {"session-held",
       [&] {
         const auto held = send("a b", 0), other = send("one two three");
         other.front()->whole();
         held.front()->grant(2);
         tell_all({held, other});
       }},
      {"session-error",
       [&] {
         const auto first = send("refuse me"), second = send("overload me");
         tell_all({first, second, send("one two")});
       }},
      {"session-drain",
       [&] {
         const auto held = send("hold on");
         held.front()->next();  // with this text came the Drain: the next request has a new stream
         tell_all({held, send("one two")});
       }},
      {"session-lost", [&] { tell_all({send("hold on")}); }},
      {"session-future",
       [&] {
         const auto first = send("one two");
         tell_all({first, send("three")});
       }},
      {"session-too-many-choices",
       [&] {
         v1::TextRequest request;
         request.set_text("one two");
         request.mutable_options()->set_num_choices(129);
         try_submit(session, request);
         tell_second(send("three"));
       }},
      {"session-bad-text",
       [&] {
         v1::TextRequest request;
         request.set_text("one two \xff");
         try_submit(session, request);
         tell_second(send("three"));
       }},
      {"session-time-limit",
       [&] {
         tell_all({send("one")});
         tell_second(session.submit(limited("mute", 1000)));
       }},
      {"session-no-hello", [&] { try_submit(session, limited("one two", 5000)); }},
      {"session-overrun",
       [&] {
         tell_all({send("overrun", 2)});  // its stream has ended then
         tell_second(send("one two"));
       }},
      {"session-bad-frame",
       [&] {
         tell_all({send("crooked")});
         tell_second(send("one two"));
       }},
      {"session-large",
       [&] {
         const std::string text = "slow " + std::string(1'000'000, 'x');
         std::vector<tokenwire::Outputs> all;
         for (int number = 0; number < 40; ++number) all.push_back(send(text));
         tell_all(all);
       }},
      {"session-many",
       [&] {
         std::vector<tokenwire::Outputs> all;
         for (int number = 0; number < 1000; ++number) all.push_back(send("n" + std::to_string(number)));
         tell_all(all);
       }},
  };
  const auto found = cases.find(name);
  if (found == cases.end()) return false;
  found->second();
  return true;
}

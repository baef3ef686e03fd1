// The conformance kit's cases of Sessions.
#pragma once

#include <string>

#include "client.h"

// False for a case that it does not know.
bool on_session(tokenwire::Stub& stub, const std::string& name);

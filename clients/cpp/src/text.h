// Text that cannot be sent.
#pragma once

#include <google/protobuf/message.h>

namespace tokenwire {

// Throws an Error that names the field of a text that is not valid UTF-8, at any depth: sent, it would end the stream.
void refuse_bad_text(const google::protobuf::Message& message);

}  // namespace tokenwire

#include "text.h"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"

namespace tokenwire {
namespace {

namespace pb = google::protobuf;

// Whether it is UTF-8 (RFC 3629): in the shortest form, without surrogates, and not beyond U+10FFFF.
bool is_utf8(std::string_view text) {
  constexpr std::array<std::uint32_t, 4> least = {0, 0x80, 0x800, 0x10000};
  for (std::size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    if ((lead >= 0x80 && lead < 0xC0) || lead > 0xF4 || text.size() - at <= more) return false;
    std::uint32_t point = more == 0 ? lead : lead & (0x3F >> more);
    for (std::size_t k = 1; k <= more; ++k) {
      const auto byte = static_cast<unsigned char>(text[at + k]);
      if ((byte & 0xC0) != 0x80) return false;
      point = point << 6 | (byte & 0x3F);
    }
    if (point < least[more] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return false;
    at += more + 1;
  }
  return true;
}

void refuse_bad(const pb::Message& message, const std::string& prefix) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  std::string scratch;
  for (const auto* field : fields) {
    const bool repeated = field->is_repeated();
    for (int i = 0; i < (repeated ? reflection.FieldSize(message, field) : 1); ++i) {
      const std::string path = prefix + field->name() + (repeated ? "[" + std::to_string(i) + "]" : "");
      if (field->cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
        refuse_bad(repeated ? reflection.GetRepeatedMessage(message, field, i) : reflection.GetMessage(message, field),
                   path + ".");
      } else if (field->type() == pb::FieldDescriptor::TYPE_STRING) {
        const std::string& text = repeated ? reflection.GetRepeatedStringReference(message, field, i, &scratch)
                                           : reflection.GetStringReference(message, field, &scratch);
        if (!is_utf8(text)) throw refused(path, "not valid Unicode: it has bytes that are not UTF-8");
      } else {
        break;  // numbers, however many
      }
    }
  }
}

}  // namespace

void refuse_bad_text(const pb::Message& message) { refuse_bad(message, ""); }

}  // namespace tokenwire

package tokenwire

import (
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
)

// refuseBadText is an *Error that names the field of a text that is not valid UTF-8, at any depth: sent, it would end the stream.
func refuseBadText(message proto.Message) error {
	return protorange.Range(message.ProtoReflect(), func(at protopath.Values) error {
		text, isText := at.Index(-1).Value.Interface().(string)
		if !isText || utf8.ValidString(text) {
			return nil
		}
		field := strings.TrimPrefix(at.Path[1:].String(), ".")
		return refused(field, "not valid Unicode: it has bytes that are not UTF-8")
	})
}

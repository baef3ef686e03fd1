package tokenwire.client;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import java.nio.charset.StandardCharsets;
import java.util.List;

/** Finds text that cannot be sent: UTF-8 has no lone surrogates, and protobuf would send something else in their place. */
final class Text {
    private Text() {}

    /** Throws a TokenwireException that names the field of the first such text, at any depth. */
    static void refuseBad(Message message) {
        refuseBad(message, "");
    }

    private static void refuseBad(Message message, String prefix) {
        message.getAllFields().forEach((field, value) -> {
            String path = prefix + field.getName();
            if (!field.isRepeated()) {
                refuseBad(field, value, path);
                return;
            }
            List<?> values = (List<?>) value;
            for (int i = 0; i < values.size(); i++) {
                refuseBad(field, values.get(i), path + "[" + i + "]");
            }
        });
    }

    private static void refuseBad(FieldDescriptor field, Object value, String path) {
        if (field.getJavaType() == FieldDescriptor.JavaType.MESSAGE) {
            refuseBad((Message) value, path + ".");
        } else if (value instanceof String text && !StandardCharsets.UTF_8.newEncoder().canEncode(text)) {
            throw TokenwireException.refused(path, "not valid Unicode: it has half of a surrogate pair");
        }
    }
}

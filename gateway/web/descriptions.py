"""Messages as JSON schemas, in protobuf's JSON form: what the unary calls take and answer over plain HTTP.

Made from the descriptors. That one field of a group alone may be set, and what handlers refuse, they do not say.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from tokenwire.v1 import gateway_pb2

Schema = dict[str, Any]

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["GenerationService"]
WHOLE_NUMBERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}
LONG_NUMBERS = (FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
"""JSON has them as text."""
NUMBERS = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
CONNECT_ERROR: Schema = {
    "type": "object",
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "details": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["code", "message", "details"],
    "additionalProperties": False,
}
"""Connect's form of an error."""


def unary_methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """Path and descriptor of each."""
    for method in SERVICE.methods:
        if not method.client_streaming and not method.server_streaming:
            yield f"/{SERVICE.full_name}/{method.name}", method


def name_of(message: Descriptor) -> str:
    """Of its schema."""
    return f"pb.{message.name}"


def message_schemas() -> dict[str, Schema]:
    """Of every message that a unary method takes or answers, and of all within it, by `name_of`."""
    found: dict[str, Schema] = {}
    waiting = [message for _, method in unary_methods() for message in (method.input_type, method.output_type)]
    while waiting:
        message = waiting.pop()
        if name_of(message) in found:
            continue
        properties = {field.json_name: _field(field) for field in message.fields}
        found[name_of(message)] = {"type": "object", "properties": properties, "additionalProperties": False}
        values = [_map_value(field) or field for field in message.fields]
        waiting += [value.message_type for value in values if value.message_type is not None]
    return found


def _map_value(field: FieldDescriptor) -> FieldDescriptor | None:
    """Of a map, what stands for its values; None: it is none."""
    message = field.message_type
    return message.fields_by_name["value"] if message is not None and message.GetOptions().map_entry else None


def _field(field: FieldDescriptor) -> Schema:
    value = _map_value(field)
    if value is not None:
        return {"type": "object", "additionalProperties": _value(value)}
    return {"type": "array", "items": _value(field)} if field.is_repeated else _value(field)


def _value(field: FieldDescriptor) -> Schema:
    if field.message_type is not None:
        return {"$ref": f"#/components/schemas/{name_of(field.message_type)}"}
    if field.enum_type is not None:
        return {"enum": [value.name for value in field.enum_type.values]}
    if field.type in WHOLE_NUMBERS:
        least, most = WHOLE_NUMBERS[field.type]
        return {"type": "integer", "minimum": least, "maximum": most}
    if field.type in LONG_NUMBERS:
        return {"type": "string", "pattern": "^-?[0-9]{1,19}$"}
    if field.type in NUMBERS:
        return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"type": "boolean"}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    assert field.type == FieldDescriptor.TYPE_STRING, field.full_name
    return {"type": "string"}

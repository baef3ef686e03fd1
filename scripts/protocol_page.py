"""Writes docs/protocol.md, the reference of the contract, from the comments of `protos`.

With --check, says whether it is current. Run by `make protos` and `make check`.
Knows messages, enums and services as descriptors; not what they mean.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PAGE = ROOT / "docs" / "protocol.md"
FILES = ("gateway", "common", "tokenizer", "model")
"""Of tokenwire/v1, in the order in which a client meets them."""

INTRODUCTION = """\
# The contract, message by message

Generated from the comments in `protos/tokenwire/v1` (`make protos`). The protocol of a Session, with its states,
credits and errors, has [a page of its own](session.md).

An `optional` field that is absent means what its text says, and zero means zero; of any other field, absent and zero
(or empty) are the same. Fields and values are added, never changed in meaning nor re-used: `buf breaking` holds the
contract to `protos/baseline.binpb` (`make check`). A reader ignores fields it does not know.
"""

Comments = dict[tuple[int, ...], str]
SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in pb.FieldDescriptorProto.Type.items()}
MESSAGES, ENUMS, SERVICES = 4, 5, 6
"""Numbers of FileDescriptorProto's fields, of which paths to comments are made."""


def descriptors() -> list[pb.FileDescriptorProto]:
    """The contract's files with their comments, in the order of FILES. Raises SystemExit where they do not compile."""
    names = [f"tokenwire/v1/{name}.proto" for name in FILES]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "contract.binpb"
        includes = [f"-I{PROTOS}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
        command = ["protoc", *includes, "--include_source_info", f"--descriptor_set_out={target}", *names]
        if protoc.main(command) != 0:
            raise SystemExit("protoc failed")
        found = {file.name: file for file in pb.FileDescriptorSet.FromString(target.read_bytes()).file}
    return [found[name] for name in names]


def page() -> str:
    """The whole page."""
    files = descriptors()
    lines = [INTRODUCTION]
    for file in files:
        lines.extend(_file(file))
    return "\n".join(lines).rstrip() + "\n"


def _file(file: pb.FileDescriptorProto) -> Iterator[str]:
    comments: Comments = {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
        if location.leading_comments
    }
    for index, service in enumerate(file.service):
        yield f"## {service.name}\n\n{comments.get((SERVICES, index), '')}\n"
        yield "| call | request | answer | |\n|---|---|---|---|"
        for number, method in enumerate(service.method):
            request = _stream(_link(method.input_type), method.client_streaming)
            answer = _stream(_link(method.output_type), method.server_streaming)
            yield f"| `{method.name}` | {request} | {answer} | {_cell(comments, (SERVICES, index, 2, number))} |"
        yield ""
    yield f"## Messages of {file.name}\n"
    for index, message in enumerate(file.message_type):
        yield from _message(message, comments, (MESSAGES, index))
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, (ENUMS, index))


def _message(message: pb.DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {message.name}\n\n{comments.get(path, '')}\n"
    if not message.field:
        return
    yield "| field | no. | type | |\n|---|---|---|---|"
    for index, field in enumerate(message.field):
        said = _cell(comments, (*path, 2, index))
        yield f"| `{field.name}` | {field.number} | {_type(field, message)} | {said} |"
    yield ""


def _enum(enum: pb.EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"### {enum.name}\n\n{comments.get(path, '')}\n\n| value | no. | |\n|---|---|---|"
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {_cell(comments, (*path, 2, index))} |"
    yield ""


def _type(field: pb.FieldDescriptorProto, message: pb.DescriptorProto) -> str:
    entry = next(
        (each for each in message.nested_type if f".{each.name}" == field.type_name[-len(each.name) - 1 :]), None
    )
    if entry is not None and entry.options.map_entry:
        return f"map of {_type(entry.field[0], entry)} to {_type(entry.field[1], entry)}"
    name = _link(field.type_name) if field.type_name else SCALARS[field.type]
    if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return name


def _link(full_name: str) -> str:
    name = full_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if full_name.startswith(".tokenwire.v1.") else full_name.removeprefix(".")


def _stream(name: str, streaming: bool) -> str:
    return f"stream of {name}" if streaming else name


def _cell(comments: Comments, path: tuple[int, ...]) -> str:
    return comments.get(path, "").replace("|", "\\|")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        print(
            "docs/protocol.md is current" if current else "docs/protocol.md differs from the contract: run: make protos"
        )
        raise SystemExit(0 if current else 1)
    PAGE.write_text(page(), encoding="utf-8")

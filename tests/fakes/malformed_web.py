"""Wrong calls of browsers: those that are wrong over gRPC, and those whose own form is wrong. Each with its answers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tests.fakes.malformed import MAX_BODY_BYTES, good_chat, good_generate, grpc_cases
from tests.fakes.web_caller import FORMS, SERVICE, STREAMED, WebCaller, envelope


@dataclass(frozen=True)
class WebCase:
    """One wrong call of a browser's: how it comes, its body, and the codes that may answer it."""

    name: str
    form: str
    method: str
    content: bytes
    codes: tuple[str, ...] = ("INVALID_ARGUMENT",)


def web_cases() -> list[WebCase]:
    """All of them: whatever is wrong over gRPC, in each form; then what is wrong with the form itself."""
    cases = [*_web_messages(), *_web_bodies(), *_web_json()]
    too_large = ("RESOURCE_EXHAUSTED",)
    return [replace(case, codes=too_large) if len(case.content) > MAX_BODY_BYTES else case for case in cases]


def _web_messages() -> Iterator[WebCase]:
    for form, case in itertools.product(FORMS, grpc_cases()):
        caller = WebCaller(None, form)
        message: Any = case.message
        if caller.json:
            if case.codes == ("RESOURCE_EXHAUSTED",):
                continue  # what makes it large is a field that JSON does not know
            try:
                message = GetMessageClass(SERVICE.methods_by_name[case.method].input_type).FromString(message)
            except DecodeError:
                continue  # there is no JSON of what is no message
        yield WebCase(f"{form}: {case.name}", form, case.method, caller.body(case.method, message), case.codes)


def _web_bodies() -> Iterator[WebCase]:
    """Envelopes and base64 that are wrong around a good message."""
    for form, (method, message) in itertools.product(FORMS, (("Generate", good_generate()), ("Chat", good_chat()))):
        caller = WebCaller(None, form)
        whole = caller.body(method, message)
        for cut in range(0, len(whole), 7):
            codes = ("INVALID_ARGUMENT",) if cut else ("UNIMPLEMENTED",)
            yield WebCase(f"{form} {method}: cut at {cut}", form, method, whole[:cut], codes)
        payload = whole if caller.connect and method not in STREAMED else caller.payload(message)
        for name, framed, codes in (
            ("two messages", envelope(payload) * 2, ("UNIMPLEMENTED",)),
            ("bytes behind it", envelope(payload) + b"x", ("UNIMPLEMENTED",)),
            ("compressed", envelope(payload, 1), ("UNIMPLEMENTED",)),
            ("an end", envelope(payload, 2), ("INVALID_ARGUMENT",)),
            ("trailers", envelope(b"grpc-status: 0\r\n", 0x80), ("INVALID_ARGUMENT",)),
            ("a length beyond it", b"\x00\xff\xff\xff\xff" + payload, ("INVALID_ARGUMENT",)),
            ("zeros", bytes(1000), ("UNIMPLEMENTED",)),
            ("too large", envelope(b" " * 70_000), ("RESOURCE_EXHAUSTED",)),
        ):
            yield WebCase(f"{form} {method}: {name}", form, method, caller.encoded(framed), codes)
        if caller.text:
            for name, text in (
                ("no base64", b"*" * 40),
                ("padding within", b"AA==" + whole),
                ("one too few", whole[1:]),
            ):
                yield WebCase(f"{form} {method}: {name}", form, method, text)


def _web_json() -> Iterator[WebCase]:
    """What is no JSON of the message, in the two forms that have JSON."""
    for form, (method, good) in itertools.product(
        ("connect json", "grpc-web json"),
        (("Generate", b'{"prompts":[{"text":"hello"}]}'), ("Tokenize", b'{"texts":["hello"]}')),
    ):
        caller = WebCaller(None, form)
        for number, junk in enumerate(
            (
                b"", b"[]", b"null", b'"x"', b"{", good + good, good[:-1] + b',"nothing":1}',
                good.replace(b"he", b"\xff"), good.replace(b"hello", b"\\ud800"), b'{"model":' + b"[" * 9_000,
                b'{"model":5}', good[:-1] + b',"model":"a","model":"b"}',
                good.decode().encode("utf-16"), b'{"prompts":5,"texts":5}',
            )
        ):  # fmt: skip
            yield WebCase(f"{form} {method}: JSON {number}", form, method, caller.body(method, junk))

import pickle

import grpc
import pytest
from google.rpc.status_pb2 import Status as RpcStatus

from tokenwire import errors
from tokenwire.cutting import MAX_TOLD_BYTES
from tokenwire.errors import BY_CODE, FieldViolation, MessageTooLarge, Overloaded, TokenwireError
from tokenwire.status import STATUS_DETAILS_KEY, from_rpc_error, from_wire, to_wire

CLASSES = [*dict.fromkeys([*BY_CODE.values(), MessageTooLarge])]


def test_no_class_is_missing_from_the_table() -> None:
    subclasses = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TokenwireError)}
    assert subclasses == {TokenwireError, *CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_the_wire_and_a_process_boundary(cls: type[TokenwireError]) -> None:
    error = cls("what is wrong", violations=[FieldViolation("a.b", "no")], retry_after_s=0.25)
    for again in (from_wire(to_wire(error)), pickle.loads(pickle.dumps(error))):
        assert type(again) is cls
        assert (again.message, again.reason, again.violations, again.retry_after_s) == (
            "what is wrong", cls.default_reason, [FieldViolation("a.b", "no")], 0.25,
        )  # fmt: skip


def test_the_table_has_a_grpc_code_and_an_http_status_for_each() -> None:
    for cls in CLASSES:
        assert cls.code in grpc.StatusCode.__members__
        assert 400 <= cls.http_status <= 599
        assert issubclass(cls, BY_CODE[cls.code])


def test_our_status_is_google_rpc_status_byte_for_byte() -> None:
    wire = to_wire(Overloaded("full", retry_after_s=2))
    foreign = RpcStatus.FromString(wire.SerializeToString())
    assert (foreign.code, foreign.message, len(foreign.details)) == (8, "full", 3)
    assert foreign.SerializeToString(deterministic=True) == wire.SerializeToString(deterministic=True)


def rpc_error(
    code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def test_a_calls_details_are_read_back_and_a_bare_status_too() -> None:
    raw = to_wire(Overloaded("full", reason="QUEUE_FULL")).SerializeToString()
    rich = from_rpc_error(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ((STATUS_DETAILS_KEY, raw),)))
    assert isinstance(rich, Overloaded) and rich.reason == "QUEUE_FULL"
    assert isinstance(from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "gone")), errors.Unavailable)
    too_large = rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)")
    assert isinstance(from_rpc_error(too_large), MessageTooLarge)


def test_codes_we_do_not_raise_are_still_errors_of_ours() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.DATA_LOSS, "hm"))
    assert type(error) is TokenwireError and error.message == "hm"


@pytest.mark.parametrize("character", ["x", "é", "😀"])
def test_what_a_client_chose_is_not_sent_back_at_any_length(character: str) -> None:
    long = character * 4_000_000
    violations = [FieldViolation(long, long), *(FieldViolation(f"f{n}", "no") for n in range(1000))]
    error = Overloaded(long, violations=violations)
    status = to_wire(error)
    assert status.ByteSize() < 5000 and len(status.message.encode()) <= MAX_TOLD_BYTES
    found = from_wire(status)
    assert 1 < len(found.violations) < 1000 and found.violations[1:] == violations[1 : len(found.violations)]
    assert error.message == long, "it is known here in full"

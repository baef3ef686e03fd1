"""ModelReplica without a connection: how frames are handed out, and load."""

from collections.abc import Sequence

import pytest

from tests.fakes.logprobs import logprobs_of
from tokenizer_svc.backends import ModelReplica
from tokenizer_svc.router import TokenReceiver
from tokenwire.errors import Internal, TokenwireError
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.session import SessionStream
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.wire import logprob_to_wire, terminal_to_wire

Frame = model_pb2.ModelServiceSessionResponse


class Receiver:
    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.tokens: list[int] = []
        self.logprobs = SequenceLogprobs()
        self.terminal: Terminal | None = None
        self.failed: TokenwireError | None = None

    def on_token(self, token_id: int) -> None:
        self.on_tokens([token_id])

    def on_tokens(self, token_ids: Sequence[int], logprobs: SequenceLogprobs | None = None) -> None:
        if self.broken:
            raise ZeroDivisionError
        self.tokens += token_ids
        if logprobs is not None:
            self.logprobs.extend(logprobs)

    def on_finish(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def on_lost(self, error: TokenwireError) -> None:
        raise AssertionError("nothing is lost here")

    def on_failed(self, error: TokenwireError) -> None:
        self.failed = error


def stream_of(*receivers: TokenReceiver) -> SessionStream[TokenReceiver]:
    stream: SessionStream[TokenReceiver] = SessionStream(
        None, model_pb2.ModelServiceSessionRequest, common_pb2.Hello(), lambda stream: None
    )
    stream.open(list(receivers))
    return stream


def replica() -> ModelReplica:
    return ModelReplica("127.0.0.1:1", "sha256:x", lambda: None)


def test_columns_are_handed_out_row_by_row() -> None:
    a, b, c = Receiver(), Receiver(), Receiver()
    stream, model = stream_of(a, b, c), replica()
    model.on_frame(stream, Frame(handles=[1, 2], token_ids=[10, 20]))
    model.on_frame(stream, Frame(handles=[3, 99, 1], counts=[2, 1, 3], token_ids=[30, 31, 7, 11, 12, 13]))
    assert (a.tokens, b.tokens, c.tokens) == ([10, 11, 12, 13], [20], [30, 31])


def test_log_probabilities_are_handed_out_with_their_tokens_and_the_prompts_without_any() -> None:
    a, b = Receiver(), Receiver()
    stream, model = stream_of(a, b), replica()
    frame = Frame(handles=[1], counts=[2], token_ids=[10, 11])
    frame.logprobs.add(handle=1, tokens=map(logprob_to_wire, logprobs_of([10, 11], 2)))
    frame.logprobs.add(handle=2, prompt=map(logprob_to_wire, logprobs_of([5], 1)))
    frame.logprobs.add(handle=99, prompt=map(logprob_to_wire, logprobs_of([6], 0)))
    model.on_frame(stream, frame)
    frame = Frame()
    frame.logprobs.add(handle=2, prompt=map(logprob_to_wire, logprobs_of([7], 1)))
    model.on_frame(stream, frame)
    assert (a.tokens, a.logprobs) == ([10, 11], SequenceLogprobs(logprobs_of([10, 11], 2)))
    assert (b.tokens, b.logprobs) == ([], SequenceLogprobs(prompt=logprobs_of([5, 7], 1)))


def test_tokens_come_before_the_end_and_nothing_after_it() -> None:
    receiver = Receiver()
    stream, model = stream_of(receiver), replica()
    end = Terminal(FinishReason.LENGTH, Usage(1, 0, 1))
    model.on_frame(stream, Frame(handles=[1], token_ids=[5], finishes=[terminal_to_wire(end, 1)]))
    model.on_frame(stream, Frame(handles=[1], token_ids=[6], finishes=[terminal_to_wire(end, 1)]))
    assert (receiver.tokens, receiver.terminal) == ([5], end)
    assert not stream.receivers


@pytest.mark.parametrize(("counts", "num_ids"), [((), 1), ((1,), 2), ((2, 2), 3)])
def test_columns_that_do_not_match_are_refused_whole(counts: tuple[int, ...], num_ids: int) -> None:
    receivers = Receiver(), Receiver()
    with pytest.raises(Internal, match="columns do not match"):
        replica().on_frame(stream_of(*receivers), Frame(handles=[1, 2], counts=counts, token_ids=range(num_ids)))
    assert not any(receiver.tokens for receiver in receivers)


def test_ids_that_are_no_tokens_are_refused_whole() -> None:
    receivers = Receiver(), Receiver()
    model = replica()
    model.vocab_size = 100
    for token_id in (100, 2**32 - 1):
        with pytest.raises(Internal, match=f"token id {token_id}") as caught:
            model.on_frame(stream_of(*receivers), Frame(handles=[1, 2], token_ids=[7, token_id]))
        assert caught.value.reason == "BAD_FRAME"
    assert not any(receiver.tokens for receiver in receivers)
    model.on_frame(stream_of(*receivers), Frame(handles=[1, 2], token_ids=[7, 99]))
    assert [receiver.tokens for receiver in receivers] == [[7], [99]]


def test_a_bug_with_one_sequence_ends_that_one_alone(caplog: pytest.LogCaptureFixture) -> None:
    broken, fine = Receiver(broken=True), Receiver()
    replica().on_frame(stream_of(broken, fine), Frame(handles=[1, 2], token_ids=[1, 2]))
    assert isinstance(broken.failed, Internal)
    assert "ZeroDivisionError" in broken.failed.message and "ZeroDivisionError" in caplog.text
    assert fine.tokens == [2]


def test_what_is_not_there_is_said() -> None:
    assert not replica().ready
    assert replica().problem() == "not started"

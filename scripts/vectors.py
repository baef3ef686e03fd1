"""Writes protos/vectors: messages of the contract as bytes and as JSON, for the tests of clients in any language.

Run by `make protos`; with --check, says whether what is committed is current. One entry of index.json for each vector:
its name, its message, and what it shows; beside it `<name>.binpb` and `<name>.json` (proto3's JSON, with the
contract's field names).
"""

import json
import sys
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.message import Message

from tokenwire.errors import FieldViolation, InvalidRequest, Overloaded
from tokenwire.status import to_wire
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2, tokenizer_pb2

FOLDER = Path(__file__).resolve().parent.parent / "protos" / "vectors"
Vector = tuple[str, str, Message]


def vectors() -> list[Vector]:
    """Name, what it shows, and the message."""
    return [*_up(), *_down(), *_calls()]


def _up() -> list[Vector]:
    whole = tokenizer_pb2.TextRequest(
        context=pb.RequestContext(request_id="r-1", priority=-100, tenant="t", timeout_ms=2**53 + 1),
        model="m",
        text="Grüße, 世界 👋",
        truncate=True,
        cache_salt="s",
    )
    sampling = whole.options.sampling
    sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed = 0.0, 0, 0.5, 2**64 - 1
    sampling.logit_bias[7], sampling.logit_bias[2**32 - 1] = -100.0, 1.5
    sampling.banned_sequences.add(ids=[1, 2, 3])
    whole.options.stop.max_tokens = 16
    whole.options.stop.stop_strings.extend(["\n\n", "終"])
    whole.options.output.logprobs = 0
    whole.options.output.skip_special_tokens = False
    plain = tokenizer_pb2.TextRequest(token_ids=pb.TokenIds(ids=[0, 127, 128, 2**32 - 1]))
    request = tokenizer_pb2.SessionRequest
    return [
        ("hello-up", "The first frame of a client.", request(hello=pb.Hello(protocol_version=1, peer="a client"))),
        (
            "submit-zeros",
            "Fields that are present and zero stay present; numbers beyond 2^53; a map; text beyond ASCII.",
            request(submits=[tokenizer_pb2.Submit(handle=1, request=whole, initial_credit=0)]),
        ),
        (
            "submit-absent",
            "The same fields absent: no limit on credit, the model's own sampling.",
            request(submits=[tokenizer_pb2.Submit(handle=2**32 - 1, request=plain)]),
        ),
        (
            "cancel-and-credit",
            "Cancels, credits and drain in one frame.",
            request(
                cancels=[pb.Cancel(handle=3, reason=pb.CANCEL_REASON_CLIENT), pb.Cancel(handle=4)],
                credits=[pb.Credit(handle=5, tokens=64)],
                drain=pb.Drain(reason="going", grace_ms=2**40),
            ),
        ),
    ]


def _down() -> list[Vector]:
    card = pb.ModelCard(
        name="m",
        max_context_tokens=8192,
        vocab_size=49152,
        capabilities=[1, 2],
        embedding_size=576,
        adapters=["a", "b"],
    )
    card.fingerprint.vocabulary = "sha256:" + "ab" * 32
    response = tokenizer_pb2.SessionResponse
    rows = response(handles=[1, 2, 300], texts=["Grüße", "", "👋"], num_tokens=[2, 1, 3])
    extras = rows.extras.add(handle=1, token_ids=[5, 6], reasoning="hm")
    token = extras.logprobs.add(token_id=5, logprob=-0.25, text="Grü", text_offset=3)
    token.top.add(token_id=9, logprob=-1.5, text="x")
    extras.tool_calls.add(id="call_1", name="f", arguments='{"a": 1}', index=1)
    timings = pb.Timings(model=pb.ModelTimings(queue_us=1, prefill_us=2**33, decode_us=3))
    usage = pb.Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=16)
    refused = InvalidRequest(
        "temperature: -1 is not allowed", violations=[FieldViolation("options.sampling.temperature", "-1")]
    )
    return [
        (
            "hello-down",
            "The first frame of a server, with a model's card.",
            response(hello=pb.Hello(protocol_version=1, peer="s", epoch=2**63, models=[card], max_requests=4096)),
        ),
        ("rows", "Columns of a frame: an empty text among them, extras of one row.", rows),
        (
            "finishes",
            "One of each kind of end; token id 0 that matched is not nothing.",
            response(
                finishes=[
                    pb.Finish(
                        handle=1, reason=pb.FINISH_REASON_STOP_TOKEN, stop_token_id=0, usage=usage, timings=timings
                    ),
                    pb.Finish(handle=2, reason=pb.FINISH_REASON_STOP_STRING, stop_string="終", usage=usage),
                    pb.Finish(handle=3, reason=pb.FINISH_REASON_LENGTH, usage=usage),
                    pb.Finish(handle=4, reason=pb.FINISH_REASON_CANCELLED),
                    pb.Finish(handle=5, reason=pb.FINISH_REASON_DEADLINE, usage=usage),
                ]
            ),
        ),
        (
            "errors",
            "google.rpc details in a finish: ErrorInfo, BadRequest, RetryInfo, QuotaFailure.",
            response(
                finishes=[
                    pb.Finish(handle=6, reason=pb.FINISH_REASON_ERROR, error=to_wire(refused)),
                    pb.Finish(
                        handle=7,
                        reason=pb.FINISH_REASON_ERROR,
                        error=to_wire(Overloaded("full", reason="QUEUE_FULL", retry_after_s=1.5)),
                    ),
                ]
            ),
        ),
        ("empty", "A frame with nothing in it.", response()),
    ]


def _calls() -> list[Vector]:
    generate = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text="a"), gateway_pb2.Prompt()])
    generate.prompts.add(token_ids=pb.TokenIds(ids=[1]))
    chat = gateway_pb2.ChatRequest()
    chat.conversation.messages.add(role="user", content="What is the capital of France?")
    chat.conversation.tools.add(name="f", parameters_json='{"type":"object"}')
    chat.conversation.parallel_tool_calls = False
    chat.options.constraint.choice.texts.extend(["yes", "no"])
    answer = gateway_pb2.ChatResponse(choice=2, delta=gateway_pb2.Delta(text="Paris", num_tokens=1, token_ids=[42]))
    return [
        ("generate", "Prompts of each form, and one that is empty.", generate),
        ("chat", "A conversation with a tool, a false that is present, a constraint.", chat),
        ("chat-answer", "New text of a choice.", answer),
    ]


def files() -> dict[str, bytes]:
    """Every file of the folder but its README, by name."""
    index, found = [], {}
    for name, shows, message in vectors():
        index.append({"name": name, "message": message.DESCRIPTOR.full_name, "shows": shows})
        found[f"{name}.binpb"] = message.SerializeToString(deterministic=True)
        as_json = json_format.MessageToDict(message, preserving_proto_field_name=True)
        found[f"{name}.json"] = (json.dumps(as_json, ensure_ascii=False, indent=1) + "\n").encode()
    found["index.json"] = (json.dumps(index, ensure_ascii=False, indent=1) + "\n").encode()
    return found


def drift() -> list[str]:
    """What differs from what is committed."""
    wanted = files()
    committed = {path.name: path.read_bytes() for path in FOLDER.glob("*.*") if path.name != "README.md"}
    names = sorted(wanted.keys() | committed.keys())
    return [f"protos/vectors/{name}: not current" for name in names if wanted.get(name) != committed.get(name)]


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        problems = drift()
        print("\n".join([*problems, "run: make protos"]) if problems else "protos/vectors is current")
        raise SystemExit(1 if problems else 0)
    FOLDER.mkdir(exist_ok=True)
    for old in {path.name for path in FOLDER.glob("*.*")} - {"README.md"} - files().keys():
        (FOLDER / old).unlink()
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)

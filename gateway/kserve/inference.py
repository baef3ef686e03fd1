"""Sends one request of the Open Inference Protocol down the gateway's own path. Does not know how it is answered."""

from gateway.generation import Generation, arriving
from gateway.kserve.answers import Answers
from gateway.kserve.model import TEXT_INPUT
from gateway.kserve.request import InferRequest
from gateway.metrics import RequestRecord
from gateway.streams import TextStream
from tokenwire.requests import MAX_REQUEST_ID_CHARS, new_request_id


def request_id_of(client_id: str, otherwise: str = "") -> str:
    """The client's id where it can be one here, else the other one, else a new one."""
    if client_id and len(client_id) <= MAX_REQUEST_ID_CHARS and client_id.isascii() and client_id.isprintable():
        return client_id
    return otherwise or new_request_id()


def open_request(
    generation: Generation,
    record: RequestRecord,
    request: InferRequest,
    *,
    request_id: str,
    call_deadline_s: float | None,
    traceparent: str = "",
) -> tuple[TextStream, Answers]:
    """Send its texts down; what comes, and what makes answers of it. Close the stream. Raises as `Generation.open`.

    `call_deadline_s`: when the call's own time runs out, on the monotonic clock; None: never.
    """
    context = arriving(
        request_id,
        priority=request.priority,
        tenant=request.fields.tenant,
        timeout_s=request.timeout_s,
        traceparent=traceparent,
    )
    record.request_id = request_id
    generation.refuse_prompt_count(len(request.texts), TEXT_INPUT)
    texts = request.fields.requests(request.texts, request.options)
    stream = generation.open(record, generation.caller(record, context, call_deadline_s), texts)
    return stream, Answers(request, request.model or generation.backends.default_model)

"""What a user of tritonclient does, against a running gateway. Runs in tritonclient's environment; prints JSON.

python triton.py HOST:PORT MODEL
"""

import asyncio
import json
import queue
import sys
import time

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

TARGET, MODEL = sys.argv[1], sys.argv[2]
PROMPTS = ["Once upon a time", "The sea was", "1 2 3 4 5 6", "Water boils at"]
GREEDY = {"temperature": 0.0, "max_tokens": 8}
CHOICE = {"structured_outputs": {"choice": ["one", "two"]}, "temperature": 1.0, "seed": 3, "max_tokens": 8}
LONG_S = 60


def bytes_input(name, values, shape=None):
    tensor = triton.InferInput(name, shape or [len(values)], "BYTES")
    return tensor.set_data_from_numpy(np.array([v.encode() for v in values], dtype=object).reshape(tensor.shape()))


def flag_input(name, value=True):
    return triton.InferInput(name, [1], "BOOL").set_data_from_numpy(np.array([value], dtype=bool))


def inputs_of(prompt, parameters=None, **flags):
    inputs = [bytes_input("text_input", [prompt])]
    if parameters is not None:
        inputs.append(bytes_input("sampling_parameters", [json.dumps(parameters)]))
    return inputs + [flag_input(name, value) for name, value in flags.items()]


def texts(result, name="text_output"):
    return [value.decode() for value in result.as_numpy(name).reshape(-1)]


def is_final(result):
    return result.get_response().parameters["triton_final_response"].bool_param


def error_of(call):
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def about(client):
    metadata = client.get_model_metadata(MODEL)
    server = client.get_server_metadata()
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL),
        "version ready": client.is_model_ready(MODEL, "1"),
        "other ready": client.is_model_ready("other"),
        "server": [server.name, list(server.extensions)],
        "inputs": {tensor.name: [tensor.datatype, list(tensor.shape)] for tensor in metadata.inputs},
        "outputs": {tensor.name: tensor.datatype for tensor in metadata.outputs},
        "versions": list(metadata.versions),
    }


def infer(client):
    one = client.infer(MODEL, inputs_of(PROMPTS[0], GREEDY, exclude_input_in_output=True), request_id="7")
    prepended = client.infer(MODEL, inputs_of(PROMPTS[0], GREEDY))
    by_parameters = client.infer(MODEL, inputs_of(PROMPTS[0], exclude_input_in_output=True), parameters=dict(GREEDY))
    tensors = [
        bytes_input("text_input", PROMPTS, [len(PROMPTS), 1]),
        flag_input("exclude_input_in_output"),
        triton.InferInput("max_tokens", [1, 1], "INT32").set_data_from_numpy(np.array([[8]], dtype=np.int32)),
        triton.InferInput("temperature", [1, 1], "FP32").set_data_from_numpy(np.array([[0]], dtype=np.float32)),
    ]
    batch = client.infer(MODEL, tensors, outputs=[triton.InferRequestedOutput("text_output")])
    stopped = client.infer(
        MODEL, inputs_of(PROMPTS[2], {"temperature": 0, "max_tokens": 20, "stop": ["9"]}, exclude_input_in_output=True)
    )
    scored = client.infer(
        MODEL,
        inputs_of(PROMPTS[0], {**GREEDY, "logprobs": 2}, return_logprobs=True, return_cumulative_logprob=True),
    )
    logprobs = json.loads(texts(scored, "logprobs")[0])
    seeded = [
        texts(client.infer(MODEL, inputs_of(PROMPTS[1], {"temperature": 1.0, "seed": 5, "max_tokens": 8})))
        for _ in range(2)
    ]
    return {
        "one": texts(one),
        "id": one.get_response().id,
        "finish_reason": texts(one, "finish_reason"),
        "num_input_tokens": one.as_numpy("num_input_tokens").tolist(),
        "num_output_tokens": one.as_numpy("num_output_tokens").tolist(),
        "prepended": texts(prepended),
        "by parameters": texts(by_parameters),
        "batch": texts(batch),
        "batch shape": list(batch.as_numpy("text_output").shape),
        "batch outputs": [output.name for output in batch.get_response().outputs],
        "stopped": texts(stopped) + texts(stopped, "finish_reason"),
        "logprobs": [len(logprobs), min(len(token) for token in logprobs)],
        "cumulative": float(scored.as_numpy("cumulative_logprob")[0])
        - sum(next(iter(token.values()))["logprob"] for token in logprobs),
        "seeded": seeded[0] == seeded[1],
        "choice": texts(client.infer(MODEL, inputs_of(PROMPTS[0], CHOICE, exclude_input_in_output=True))),
    }


def stream(client):
    """Many requests on one stream, two of them wrong; by id the pieces, and whether the last one came last."""
    results = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    wanted = {}
    for number in range(24):
        prompt = PROMPTS[number % len(PROMPTS)]
        wanted[str(number)] = prompt
        client.async_stream_infer(
            MODEL, inputs_of(prompt, GREEDY, stream=True), request_id=str(number),
            enable_empty_final_response=number % 2 == 1,
        )  # fmt: skip
        if number in (3, 9):
            client.async_stream_infer(MODEL, inputs_of(prompt, {"odd": 1}, stream=True), request_id="bad")
    pieces, finals, empty_finals, errors, order = {}, [], 0, [], []
    ends_s = time.monotonic() + LONG_S
    while len(finals) + len(errors) < len(wanted) + 2:
        result, error = results.get(timeout=ends_s - time.monotonic())
        if error is not None:
            errors.append(error.message())
            continue
        request_id = result.get_response().id
        assert request_id not in finals, "something follows the last answer"
        order.append(request_id)
        if result.as_numpy("text_output") is None:
            empty_finals += 1
        else:
            pieces.setdefault(request_id, []).append(texts(result)[0])
        if is_final(result):
            finals.append(request_id)
    client.stop_stream()
    switches = sum(one != other for one, other in zip(order, order[1:], strict=False))
    return {
        "texts": {request_id: "".join(pieces[request_id]) for request_id in wanted},
        "most pieces": max(map(len, pieces.values())),
        "empty finals": empty_finals,
        "errors": errors,
        "interleaved": switches > len(wanted),
    }


def cancel(client):
    """Leave while much is running; the tiers below are looked at by the test."""
    results = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    for number in range(4):
        parameters = {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}
        client.async_stream_infer(MODEL, inputs_of(PROMPTS[number], parameters, stream=True), request_id=str(number))
    first, error = results.get(timeout=LONG_S)
    client.stop_stream(cancel_requests=True)
    left = []
    while True:
        try:
            left.append(results.get(timeout=1)[1])
        except queue.Empty:
            break
    ends = [error.status() for error in left if error is not None]
    return {"first": error is None, "ends": ends}


def errors(client):
    def call(parameters=None, model=MODEL, version="", inputs=None, **options):
        given = inputs or inputs_of("a", parameters)
        return error_of(lambda: client.infer(model, given, model_version=version, **options))

    wrong_shape = [bytes_input("text_input", ["a", "b"], [1, 2])]
    wrong_type = [triton.InferInput("text_input", [1], "INT32").set_data_from_numpy(np.array([1], dtype=np.int32))]
    return {
        "unknown parameter": call({"odd": 1}),
        "bad value": call({"temperature": -1}),
        "unknown model": call(model="other"),
        "unknown version": call(version="9"),
        "no text": call(inputs=[flag_input("exclude_input_in_output")]),
        "shape": call(inputs=wrong_shape),
        "datatype": call(inputs=wrong_type),
        "not JSON": call(inputs=[bytes_input("text_input", ["a"]), bytes_input("sampling_parameters", ["{"])]),
        "too long": call(inputs=[bytes_input("text_input", ["word " * 20_000])]),
        "metadata": error_of(lambda: client.get_model_metadata("other")),
        "deadline": call(
            inputs=inputs_of("a", {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}), client_timeout=0.5
        ),
        "timeout": call(
            inputs=inputs_of("a", {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}), timeout=300_000
        ),
    }


async def as_the_vllm_sample():
    """The way of the vLLM backend's sample client: asyncio, parameters twice and as texts, text_output alone."""
    sampling = {"temperature": "0.0", "top_p": "0.95", "max_tokens": "8"}
    found = {}

    async def requests():
        for number, prompt in enumerate(PROMPTS):
            inputs = [bytes_input("text_input", [prompt]), flag_input("stream")]
            inputs.append(bytes_input("sampling_parameters", [json.dumps(sampling)]))
            yield {
                "model_name": MODEL, "inputs": inputs, "outputs": [triton.InferRequestedOutput("text_output")],
                "request_id": str(number), "parameters": sampling,
            }  # fmt: skip

    async with triton_aio.InferenceServerClient(TARGET) as client:
        async for result, error in client.stream_infer(requests(), stream_timeout=LONG_S):
            assert error is None, error
            found.setdefault(result.get_response().id, []).extend(texts(result))
    return ["".join(found[str(number)]) for number in range(len(PROMPTS))]


def descriptors():
    """The messages that both sides have, field by field."""
    found = {}
    pending = [service_pb2.DESCRIPTOR.message_types_by_name[name] for name in sys.argv[3:]]
    while pending:
        message = pending.pop()
        if message.full_name in found:
            continue
        found[message.full_name] = sorted(
            [field.number, field.name, field.type, field.message_type.full_name if field.message_type else ""]
            for field in message.fields
        )
        pending += [field.message_type for field in message.fields if field.message_type]
    return found


def main():
    with triton.InferenceServerClient(TARGET) as client:
        found = {
            "about": about(client),
            "infer": infer(client),
            "stream": stream(client),
            "errors": errors(client),
            "sample": asyncio.run(as_the_vllm_sample()),
            "cancel": cancel(client),
            "descriptors": descriptors(),
        }
    print(json.dumps(found))


main()

"""NVIDIA's tritonclient, streaming (pip install 'tritonclient[grpc]', in an environment of its own).

python triton_stream.py [HOST:PORT]
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton

MODEL = "smollm2-135m-instruct"


def text_input(name: str, text: str) -> triton.InferInput:
    return triton.InferInput(name, [1], "BYTES").set_data_from_numpy(np.array([text.encode()], dtype=object))


stream = triton.InferInput("stream", [1], "BOOL").set_data_from_numpy(np.array([True]))
inputs = [
    text_input("text_input", "Once upon a time"),
    text_input("sampling_parameters", json.dumps({"temperature": 0, "max_tokens": 32})),
    stream,
]
answers: queue.Queue = queue.Queue()
with triton.InferenceServerClient(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051") as client:
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(MODEL, inputs, request_id="1")
    final = False
    while not final:
        result, error = answers.get()
        if error is not None:
            raise error
        print(result.as_numpy("text_output")[0].decode(), end="", flush=True)
        final = result.get_response().parameters["triton_final_response"].bool_param
    print()
    client.stop_stream()

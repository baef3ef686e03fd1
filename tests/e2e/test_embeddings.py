"""Embeddings through every tier on the real default model in fp32: OpenAI's client, ours, and beside a stream."""

import threading

import numpy as np
import openai
import pytest
import torch

from tests.e2e.conftest import Stack
from tests.e2e.reference import Reference
from tokenwire.client import Client

pytestmark = pytest.mark.model

TEXTS = ["The cat sat on the mat.", "A feline rested on a rug.", "Stocks fell sharply on Monday.", "word " * 300]


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


@torch.inference_mode()
def wanted(reference: Reference, text: str, pooling: str) -> np.ndarray:
    ids = reference.tokenizer(text, return_tensors="pt").input_ids
    hidden = reference.model.model(input_ids=ids).last_hidden_state[0].numpy()
    return unit(hidden.mean(0) if pooling == "mean" else hidden[-1])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_transformers(stack: Stack, reference: Reference, pooling: str) -> None:
    with openai.OpenAI(base_url=f"{stack.http_url}/v1", api_key="unused", max_retries=0) as client:
        options = {"pooling": pooling}
        in_base64 = client.embeddings.create(model="smollm2-135m-instruct", input=TEXTS, extra_body=options)
        floats = client.embeddings.create(
            model="smollm2-135m-instruct", input=TEXTS, encoding_format="float", extra_body=options
        )
    found = np.array([each.embedding for each in in_base64.data])
    assert np.array_equal(found.astype(np.float32), np.array([each.embedding for each in floats.data], np.float32))
    assert [each.index for each in in_base64.data] == [0, 1, 2, 3]
    for vector, text in zip(found, TEXTS, strict=True):
        assert float(vector @ wanted(reference, text, pooling)) > 0.99999
    assert in_base64.usage.prompt_tokens == in_base64.usage.total_tokens > 300


def test_a_large_call_beside_a_stream_leaves_its_tokens_alone(stack: Stack) -> None:
    with Client(stack.grpc_target) as client:
        alone = client.chat("Name three colours.", temperature=0, max_tokens=24).text()
        done: list[int] = []
        embedding = threading.Thread(target=lambda: done.append(len(client.embed(*TEXTS[:3] * 40).vectors)))
        embedding.start()
        beside = client.chat("Name three colours.", temperature=0, max_tokens=24).text()
        embedding.join(60)
    assert beside == alone and done == [120]

"""`embed` of both clients: what is sent, what comes back, what is refused before it is sent."""

import asyncio
from typing import Any

import pytest

from tests.fakes.gateway import running_gateway
from tokenwire.client import AsyncClient, Client, Embeddings
from tokenwire.errors import InvalidRequest
from tokenwire.requests import Usage
from tokenwire.v1 import model_pb2


def test_both_clients_send_and_read_the_same() -> None:
    with running_gateway() as gateway:
        options: dict[str, Any] = {
            "pooling": "mean", "normalize": False, "dimensions": 7, "truncate": True, "timeout_s": 3, "tenant": "t",
            "priority": 4, "request_id": "mine", "split_special_tokens": True,
        }  # fmt: skip
        with Client(gateway.target) as client:
            found = client.embed("ab", "cde", **options)
            (card,) = client.models()

        async def main() -> Embeddings:
            async with AsyncClient(gateway.target) as client:
                return await client.embed("ab", "cde", **options)

        assert found == asyncio.run(main()) == Embeddings([[0.5, 2.0], [1.5, 3.0]], Usage(5))
        for sent in (gateway.requests[0], gateway.requests[-1]):
            assert list(sent.texts) == ["ab", "cde"] and sent.truncate and sent.split_special_tokens
            wanted = model_pb2.EmbeddingOptions(pooling=model_pb2.POOLING_MEAN, normalize=False, dimensions=7)
            assert sent.options == wanted
            assert (sent.context.request_id, sent.context.tenant, sent.context.priority) == ("mine", "t", 4)
            assert 0 < sent.context.timeout_ms <= 3000
        assert card.capabilities == ("generate", "embed") and card.embedding_size == 2


def test_token_ids() -> None:
    with running_gateway() as gateway, Client(gateway.target) as client:
        assert client.embed([1, 2, 3], (4,)).vectors == [[0.5, 3.0], [1.5, 1.0]]
        assert [list(each.ids) for each in gateway.requests[0].token_ids] == [[1, 2, 3], [4]]
        assert gateway.requests[0].options.normalize and not gateway.requests[0].options.HasField("dimensions")


@pytest.mark.parametrize(
    ("inputs", "options", "said"),
    [
        ((), {}, "inputs: 0 inputs"),
        (("a", ""), {}, r"inputs\[1\]: is empty"),
        (("a", [1]), {}, "mixed"),
        (([-1],), {}, r"inputs\[0\]\[0\]: -1"),
        (("\ud800",), {}, r"inputs\[0\]"),
        (("a",), {"pooling": "max"}, "pooling: 'max' is not allowed: mean, last, cls"),
        (("a",), {"dimensions": 0}, "dimensions: 0"),
        (("a",), {"timeout_s": 0}, "timeout_s"),
        (("a",), {"priority": 101}, "priority"),
    ],
)
def test_what_is_refused_before_it_is_sent(inputs: Any, options: Any, said: str) -> None:
    with running_gateway() as gateway, Client(gateway.target) as client:
        with pytest.raises(InvalidRequest, match=said):
            client.embed(*inputs, **options)
        with pytest.raises(TypeError, match="no such option: temperature"):
            client.embed("a", temperature=1)  # type: ignore[call-arg]
        assert not gateway.requests

import pytest
import torch

from model_svc.runner import logprobs
from model_svc.runner.input_batch import PromptSpan
from model_svc.runner.logprobs import entries, score, score_prompt, score_sampled


def logits_of(num: int, vocab_size: int = 500) -> torch.Tensor:
    return torch.randn(num, vocab_size, generator=torch.Generator().manual_seed(num)) * 3


@pytest.mark.parametrize("slice_rows", [1, 3, 7, 128])
def test_scores_are_those_of_log_softmax(slice_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "SLICE_ROWS", slice_rows)
    logits, tokens = logits_of(7), torch.tensor([0, 499, 3, 3, 7, 250, 1])
    wanted = logits.log_softmax(-1)
    scores = score(logits, tokens, 20)
    torch.testing.assert_close(scores.own, wanted[range(7), tokens])
    torch.testing.assert_close(scores.top, wanted.topk(20).values)
    assert torch.equal(scores.top_ids, wanted.topk(20).indices)
    rows = torch.tensor([5, 0, 2])
    for some, whole in zip(score(logits, tokens[rows], 20, rows), scores, strict=True):
        assert torch.equal(some, whole[rows])


def test_only_rows_that_ask_are_scored() -> None:
    logits, tokens = logits_of(4), torch.tensor([3, -1, 5, 6])
    assert score_sampled(logits, tokens, [None] * 4) is None
    scores = score_sampled(logits, tokens, [None, 2, 0, None])
    assert scores is not None
    assert scores.top.shape == (2, 2)
    assert scores.own[1] == logits[2].log_softmax(-1)[5]
    made = entries(scores, [9, 5], [2, 0])
    assert [len(entry.top) for entry in made] == [2, 0]
    none_but_own = score_sampled(logits, tokens, [0, 0, 0, 0])
    assert none_but_own is not None
    assert none_but_own.top.shape == (4, 0)


def test_prompt_scores_ask_for_the_most() -> None:
    assert score_prompt(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64), []) is None
    scores = score_prompt(logits_of(3), torch.tensor([1, 2, 3]), [PromptSpan(0, [1, 2], 1), PromptSpan(4, [3], 5)])
    assert scores is not None
    assert scores.top.shape == (3, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ties_are_in_the_order_of_ids(dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 300, dtype=dtype)
    logits[0, [250, 7, 90]] = 5.0
    logits[0, [3, 200, 100, 50]] = 4.0
    for num_top in (1, 2, 5, 7):
        scores = score(logits, torch.tensor([0]), num_top)
        assert scores.top_ids.tolist() == [[7, 90, 250, 3, 50, 100, 200][:num_top]]


def test_a_small_vocabulary_is_listed_whole() -> None:
    scores = score(logits_of(2, 4), torch.tensor([0, 1]), 20)
    assert scores.top.shape == (2, 4)
    torch.testing.assert_close(scores.top.exp().sum(-1), torch.ones(2))

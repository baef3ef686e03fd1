import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tokenwire.errors import FailedPrecondition
from tokenwire.fingerprint import template_fingerprint, vocabulary_fingerprint

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
ADDED = [{"id": 3, "content": "<s>", "special": True}, {"id": 4, "content": "<tool>", "special": False}]


def fingerprint(folder: Path, model: dict[str, Any], added: list[dict[str, Any]], **more: Any) -> str:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"model": model, "added_tokens": added, **more}))
    return vocabulary_fingerprint(path)


def test_form_and_stability(tmp_path: Path) -> None:
    """Written out, because tiers of different releases compare it."""
    canonical = '[[[0,"a"],[1,"b"],[2,"ab"],[3,"<s>"],[4,"<tool>"]],[3]]'
    assert fingerprint(tmp_path, BPE, ADDED) == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def test_order_merges_and_normalizers_do_not_matter(tmp_path: Path) -> None:
    shuffled = {**BPE, "vocab": {"ab": 2, "b": 1, "a": 0}, "merges": []}
    expected = fingerprint(tmp_path, BPE, ADDED)
    assert fingerprint(tmp_path, shuffled, ADDED[::-1], normalizer={"type": "NFC"}) == expected


def test_added_tokens_count_once_wherever_they_stand(tmp_path: Path) -> None:
    both = {**BPE, "vocab": {**BPE["vocab"], "<s>": 3, "<tool>": 4}}  # type: ignore[dict-item]
    assert fingerprint(tmp_path, both, ADDED) == fingerprint(tmp_path, BPE, ADDED)


def test_unigram_lists_equal_dicts_of_the_same_tokens(tmp_path: Path) -> None:
    unigram = {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0], ["ab", -3.0]], "unk_id": 0}
    assert fingerprint(tmp_path, unigram, ADDED) == fingerprint(tmp_path, BPE, ADDED)


def test_every_difference_that_matters_shows(tmp_path: Path) -> None:
    found = {
        fingerprint(tmp_path, model, added)
        for model, added in (
            (BPE, ADDED),
            (BPE, ADDED[:1]),
            (BPE, [{**ADDED[0], "special": False}, ADDED[1]]),
            ({**BPE, "vocab": {"a": 1, "b": 0, "ab": 2}}, ADDED),
            ({**BPE, "vocab": {"a": 0, "b": 1, "ac": 2}}, ADDED),
        )
    }
    assert len(found) == 5


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"model": {}}', '{"model": {"vocab": 3}}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FailedPrecondition, match="tokenizer.json"):
        vocabulary_fingerprint(path)


def test_template_fingerprint() -> None:
    assert template_fingerprint("a") != template_fingerprint("b")
    assert template_fingerprint("a").startswith("sha256:")

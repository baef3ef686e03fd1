import json
from pathlib import Path

import pytest

from tests.fakes.tokenizers_trained import TRAINED, byte_level_bpe, write_folder
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import FailedPrecondition, InvalidRequest


def test_loads_a_folder(trained_folder: Path) -> None:
    tokenizer = Tokenizer.load(trained_folder)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    assert tokenizer.vocab_size == byte_level_bpe().get_vocab_size()
    assert tokenizer.fingerprint.startswith("sha256:")


def test_special_tokens_of_the_older_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": None}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "</s>"}, "pad_token": "<unk>"})
    )
    assert Tokenizer.load(folder).special_tokens == {"eos_token": "</s>", "pad_token": "<unk>"}


@pytest.mark.parametrize("family", sorted(TRAINED))
def test_batch_and_single_encoding_agree(tmp_path: Path, family: str) -> None:
    tokenizer = Tokenizer.load(write_folder(tmp_path, TRAINED[family]()))
    texts = ["The capital of France", "", "naïve 日本語 😀"]
    singles = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
    assert tokenizer.encode_batch(texts, add_special_tokens=True) == singles
    with_offsets = tokenizer.encode_batch(texts, add_special_tokens=True, offsets=True)
    assert [found.token_ids for found in with_offsets] == [found.token_ids for found in singles]
    assert with_offsets[0].offsets is not None and len(with_offsets[0].offsets) == len(singles[0].token_ids)


def test_offsets_count_characters(trained_folder: Path) -> None:
    text = "naïve café is"
    found = Tokenizer.load(trained_folder).encode(text, add_special_tokens=False, offsets=True)
    assert found.offsets is not None
    assert text[slice(*found.offsets[-1])].strip() == "is"


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    backend = byte_level_bpe()
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.load(write_folder(tmp_path, backend))
    text = "The capital of France is Paris."
    ids = tokenizer.encode(text, add_special_tokens=True).token_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_lone_surrogate_is_refused(trained_folder: Path) -> None:
    tokenizer = Tokenizer.load(trained_folder)
    for call in (
        lambda: tokenizer.encode("a\ud800", add_special_tokens=True),
        lambda: tokenizer.encode_batch(["fine", "a\ud800"], add_special_tokens=True),
    ):
        with pytest.raises(InvalidRequest, match="Unicode"):
            call()


def test_ids_outside_the_vocabulary_are_named(trained_folder: Path) -> None:
    tokenizer = Tokenizer.load(trained_folder)
    tokenizer.check_ids([0, tokenizer.vocab_size - 1], "token_ids")
    tokenizer.check_ids([], "token_ids")
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.check_ids([1, 2, tokenizer.vocab_size], "sequences[0].ids")
    assert caught.value.violations[0].field == "sequences[0].ids[2]"
    assert str(tokenizer.vocab_size) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}'),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, file: str, content: str | None) -> None:
    folder = write_folder(tmp_path)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(FailedPrecondition, match=file):
        Tokenizer.load(folder)


@pytest.mark.parametrize("file", ["tokenizer.model", "vocab.txt"])
def test_a_tokenizer_that_was_never_converted_is_told_how(tmp_path: Path, file: str) -> None:
    folder = write_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / file).write_text("")
    with pytest.raises(FailedPrecondition, match=f"{file} and no tokenizer.json.*save_pretrained") as caught:
        Tokenizer.load(folder)
    assert caught.value.reason == "TOKENIZER_NOT_CONVERTED"


def test_ids_that_no_token_has_are_known() -> None:
    tokenizer = Tokenizer(byte_level_bpe(), fingerprint="", special_tokens={"bos_token": "<s>"})
    assert not tokenizer.unused_ids and tokenizer.begin_id == tokenizer.backend.token_to_id("<s>")
    assert {tokenizer.special_texts[i] for i in tokenizer.special_ids} >= {"<s>", "<|im_end|>"}
    assert (
        not tokenizer.byte_of
        and len(Tokenizer(TRAINED["byte_fallback_bpe"](), fingerprint="", special_tokens={}).byte_of) == 256
    )

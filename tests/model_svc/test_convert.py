"""GGUF to model folder: the weights, the tokenizer and what must be refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_svc.model import convert
from tests.fakes.tiny_gguf import CHAT_TEMPLATE, TOKENS, tiny_llama, write_gguf
from tokenwire.model_folder import check_folder
from tokenwire.models import resolve


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama())
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_computes_what_the_original_computes(tmp_path: Path, tied: bool) -> None:
    original = tiny_llama(tied)
    write_gguf(tmp_path / "tiny.gguf", original)
    target = tmp_path / "folder"
    assert convert.main([str(tmp_path / "tiny.gguf"), str(target)]) == 0
    check_folder(target)
    found = AutoModelForCausalLM.from_pretrained(target)
    assert found.dtype == torch.float32
    ids = torch.randint(0, len(TOKENS), (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(found(ids).logits, original(ids).logits)
    assert found.config.tie_word_embeddings is tied
    assert (found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()) is tied
    with safe_open(target / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) is not tied


def test_the_configs_say_what_the_file_says_and_nothing_more(source: Path, tmp_path: Path) -> None:
    assert convert.main([str(source), str(tmp_path / "folder")]) == 0
    generation = json.loads((tmp_path / "folder/generation_config.json").read_text())
    generation.pop("transformers_version")
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = json.loads((tmp_path / "folder/config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["max_position_embeddings"] == 256
    assert not [key for key in config if "gguf" in str(config[key]) or key == "quantization_config"]


def test_the_tokenizer_keeps_special_tokens_and_template(source: Path, tmp_path: Path) -> None:
    assert convert.main([str(source), str(tmp_path / "folder")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 256
    assert (tmp_path / "folder/chat_template.jinja").read_text() == CHAT_TEMPLATE
    backend = Tokenizer.from_file(str(tmp_path / "folder/tokenizer.json"))
    assert backend.encode("hello<|im_end|>").tokens == ["hello", "<|im_end|>"]


def test_digits_are_split_from_the_blanks_before_them(source: Path, tmp_path: Path) -> None:
    assert convert.main([str(source), str(tmp_path / "folder")]) == 0
    backend = Tokenizer.from_file(str(tmp_path / "folder/tokenizer.json"))
    assert backend.encode("a  12").tokens == ["a", "ĠĠ", "1", "2"]
    write_gguf(tmp_path / "gpt2.gguf", tiny_llama(), pre="gpt-2")
    assert convert.main([str(tmp_path / "gpt2.gguf"), str(tmp_path / "gpt2")]) == 0
    backend = Tokenizer.from_file(str(tmp_path / "gpt2/tokenizer.json"))
    assert backend.encode("a  12").tokens == ["a", "Ġ", "Ġ", "1", "2"]


def test_bfloat16_on_request(source: Path, tmp_path: Path) -> None:
    assert convert.main([str(source), str(tmp_path / "folder"), "--dtype", "bfloat16"]) == 0
    with safe_open(tmp_path / "folder/model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}


def test_progress_goes_to_stdout(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main([str(source), str(tmp_path / "folder")]) == 0
    percents = [int(line.partition("%")[0]) for line in capsys.readouterr().out.splitlines()]
    assert percents == sorted(percents)
    assert percents[0] == 0
    assert percents[-1] == 100


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert convert.main(arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convert: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_file_without_a_tensor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), without=["blk.1.ffn_up.weight"])
    line = refusal([str(tmp_path / "tiny.gguf"), str(tmp_path / "folder")], capsys)
    assert "lacks 1 tensors" in line
    assert "model.layers.1.mlp.up_proj.weight" in line
    assert not (tmp_path / "folder").exists()


def test_an_unknown_splitting_rule_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), pre="never-heard-of")
    assert "tokenizer.ggml.pre='never-heard-of'" in refusal([str(tmp_path / "tiny.gguf"), str(tmp_path / "f")], capsys)
    assert not (tmp_path / "f").exists()


def test_a_file_without_an_end_token_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), eos=None)
    assert "eos_token_id" in refusal([str(tmp_path / "tiny.gguf"), str(tmp_path / "folder")], capsys)


@pytest.mark.parametrize("content", [b"", b"not a model at all", "half"])
def test_a_broken_file_is_refused_and_leaves_nothing(
    source: Path, tmp_path: Path, content: bytes | str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(source.read_bytes()[: source.stat().st_size // 2] if content == "half" else content)  # type: ignore[arg-type]
    assert "broken.gguf" in refusal([str(broken), str(tmp_path / "folder")], capsys)
    assert not (tmp_path / "folder").exists()


def test_a_missing_file_and_a_used_folder_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in refusal([str(tmp_path / "none.gguf"), str(tmp_path / "folder")], capsys)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").write_text("kept")
    assert "not an empty folder" in refusal([str(source), str(tmp_path / "used")], capsys)
    assert (tmp_path / "used/mine.txt").read_text() == "kept"


def test_missing_packages_are_named_with_the_extra(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "MISSING", ["accelerate", "gguf"])
    line = refusal([str(source), str(tmp_path / "folder")], capsys)
    assert "accelerate, gguf" in line
    assert "tokenwire[convert]" in line


@pytest.mark.model
def test_the_default_model_answers_as_it_should() -> None:
    folder = resolve("default", convert=False)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(prompt["input_ids"][0]).startswith("<|im_start|>system\nYou are a helpful AI assistant")
    output = model.generate(**prompt, do_sample=False, max_new_tokens=30)
    answer = tokenizer.decode(output[0][prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
    assert tokenizer.tokenize("foo  2024") == ["foo", "ĠĠ", "2", "0", "2", "4"]

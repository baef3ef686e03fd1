import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from model_svc.model import device as devices
from model_svc.model.loader import eos_token_ids, load_model, sampling_defaults
from tests.fakes.tiny_models import CONTEXT, VOCAB_SIZE, write_model
from tokenwire.errors import FailedPrecondition, NotFound
from tokenwire.sampling import NEUTRAL

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny", "llama")


def test_a_loaded_model_tells_what_its_files_say(folder: Path) -> None:
    model = load_model(folder, CPU, "float32")
    assert (model.vocab_size, model.num_layers, model.max_context_tokens) == (VOCAB_SIZE, 2, CONTEXT)
    assert model.dtype == torch.float32
    assert model.eos_token_ids == ()
    assert model.takes_logits_to_keep
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="tokenwire models pull") as error:
        load_model(tmp_path / "absent", CPU, "float32")
    assert error.value.reason == "MODEL_NOT_FOUND"


def refused(folder: Path, text: str, reason: str = "MODEL_CORRUPT") -> None:
    with pytest.raises(FailedPrecondition, match=text) as error:
        load_model(folder, CPU, "float32")
    assert error.value.reason == reason


def test_a_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "config.json is missing")


def test_a_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')
    refused(folder, "cannot be loaded")


def test_pickled_weights_are_not_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "no \\*.safetensors file")


def test_cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(folder, "cannot be read")


def test_weights_that_lack_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "missing_keys: model.norm.weight")


def test_weights_of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FailedPrecondition, match=r"model\.norm\.weight|mismatch"):
        load_model(folder, CPU, "float32")


def test_an_unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    refused(folder, "no-such-model", "MODEL_UNSUPPORTED")


def test_remote_code_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    extra = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | extra))
    (folder / "own.py").write_text("raise SystemExit('remote code ran')")
    refused(folder, "cannot be served", "MODEL_UNSUPPORTED")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("repository", ["", "evil/repository--"])
def test_code_that_a_config_names_is_not_run(folder: Path, tmp_path: Path, known: bool, repository: str) -> None:
    """Neither for a type of model that is known, nor where the config says that its code may be trusted."""
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": f"{repository}own.Config", "AutoModelForCausalLM": f"{repository}own.Model"}
    own = {} if known else {"model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "trust_remote_code": True} | own))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    if known:
        assert type(load_model(folder, CPU, "float32").module).__module__.startswith("transformers.")
    else:
        refused(folder, "cannot be served", "MODEL_UNSUPPORTED")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../outside.safetensors"])
def test_an_index_brings_nothing_but_safetensors_of_its_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """Both would be loaded by transformers, the first as a pickle."""
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    save_file(tensors, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    refused(folder, "names no safetensors file of this folder", "MODEL_DAMAGED")


def test_an_adapter_beside_a_model_is_refused_whether_peft_is_installed_or_not(folder: Path) -> None:
    """With PEFT transformers would load it into the model, pickled weights included."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}))
    torch.save({}, folder / "adapter_model.bin")
    refused(folder, "adapter_config.json.*folder of its own", "MODEL_UNSUPPORTED")


@pytest.mark.parametrize("odd", [{"dtype": "load"}, {"hidden_act": "__import__('os')"}])
def test_a_config_that_makes_no_sense_is_refused_by_name(folder: Path, odd: dict[str, str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    refused(folder, "cannot be served", "MODEL_UNSUPPORTED")


def test_sampling_defaults_are_greedy_unless_the_model_samples() -> None:
    assert sampling_defaults(None) == NEUTRAL
    assert sampling_defaults(GenerationConfig()) == NEUTRAL
    assert sampling_defaults(GenerationConfig(do_sample=True)) == replace(NEUTRAL, temperature=1.0)
    given = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, min_p=0.05)
    assert sampling_defaults(given) == replace(NEUTRAL, temperature=0.6, top_k=20, top_p=0.95, min_p=0.05)


def test_a_repetition_penalty_of_the_model_holds_for_greedy_decoding_too() -> None:
    given = GenerationConfig(temperature=0.5, repetition_penalty=1.05)
    assert sampling_defaults(given) == replace(NEUTRAL, repetition_penalty=1.05)


def test_eos_ids_come_from_generation_config_first() -> None:
    assert eos_token_ids(GenerationConfig(eos_token_id=[2, 7]), GenerationConfig(eos_token_id=5)) == (2, 7)
    assert eos_token_ids(GenerationConfig(), GenerationConfig(eos_token_id=5)) == (5,)
    assert eos_token_ids(None, GenerationConfig()) == ()


def test_dtype_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    assert devices.resolve_dtype("auto", cuda, torch.bfloat16) == torch.bfloat16
    assert devices.resolve_dtype("auto", cuda, None) == torch.float32
    assert devices.resolve_dtype("float16", CPU, torch.bfloat16) == torch.float16
    for able, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda able=able: able)
        assert devices.resolve_dtype("auto", CPU, torch.float16) == dtype


def test_bf16_instructions_are_read_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for machine, text, able in (
        ("x86_64", "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("x86_64", "flags\t\t: fpu amx_bf16\n", True),
        ("x86_64", "flags\t\t: fpu avx512f\n", False),
        ("aarch64", "Features\t: fp asimd bf16\n", True),
        ("aarch64", "Features\t: fp asimd\n", False),
    ):
        monkeypatch.setattr(devices.platform, "machine", lambda machine=machine: machine)
        cpuinfo.write_text(text)
        assert devices.cpu_multiplies_bf16(cpuinfo) is able
    assert not devices.cpu_multiplies_bf16(tmp_path / "absent")


def test_devices_that_are_not_there_are_refused() -> None:
    assert devices.resolve_device("cpu") == CPU
    for name in ("tpu", "meta", "cuda:99", "nonsense:3", "cpu:0", "cpu:1"):
        with pytest.raises(FailedPrecondition, match=f"device: '{name}'"):
            devices.resolve_device(name)


@pytest.mark.parametrize(("cuda", "advice"), [("13.0", "a driver for CUDA 13.0"), (None, "torch's CUDA build")])
def test_what_to_do_where_torch_finds_no_gpu(monkeypatch: pytest.MonkeyPatch, cuda: str | None, advice: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(FailedPrecondition, match=f"finds no CUDA device; .*{advice}.*, or use --device cpu") as caught:
        devices.resolve_device("cuda")
    assert caught.value.reason == "DEVICE_UNAVAILABLE"

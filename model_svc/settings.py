"""Settings of the model tier. Parsed once in `__main__`; everything below receives values, never the environment."""

from dataclasses import dataclass

from tokenwire.requests import ADAPTER_NAME_RULE, is_adapter_name
from tokenwire.settings import ServerSettings, bytes_of, setting

MAX_WEIGHT = 1e6
"""Most that a tenant may weigh, and its inverse the least: beyond that a share means nothing."""


def weights_of(text: str) -> tuple[tuple[str, float], ...]:
    """`"alice=2,bob=0.5"` → (("alice", 2.0), ("bob", 0.5)). Raises ValueError saying what is allowed."""
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        tenant, found, number = part.rpartition("=")
        if tenant in weights:
            raise ValueError(f"one weight for each tenant; {tenant!r} has two")
        try:
            weights[tenant] = float(number)
        except ValueError:
            found = ""
        if not found or not 1 / MAX_WEIGHT <= weights[tenant] <= MAX_WEIGHT:
            allowed = f"each weight a number from {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            raise ValueError(f"NAME=WEIGHT, several separated by commas, {allowed}")
    return tuple(weights.items())


def adapters_of(text: str) -> tuple[tuple[str, str], ...]:
    """`"poet=/adapters/poet,coder=/adapters/coder"` → pairs of name and folder. Raises ValueError."""
    adapters: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, folder = part.partition("=")
        if not is_adapter_name(name) or not folder:
            raise ValueError(f"NAME=FOLDER, several separated by commas, each name {ADAPTER_NAME_RULE}")
        if name in adapters:
            raise ValueError(f"one folder for each name; {name!r} has two")
        adapters[name] = folder
    return tuple(adapters.items())


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What the engine process is started with. Crosses the process boundary, so plain values only."""

    model: str = setting(
        "smollm2-135m-instruct", "model: a name from `tokenwire models list`, a folder, a .gguf file or a hub id"
    )
    served_name: str = setting("", "name clients ask for (default: the last part of --model)")
    engine: str = setting("torch", "what runs the model", choices=("torch", "mock"))
    device: str = setting("auto", "cpu, cuda, cuda:N or auto (a GPU where there is one)")
    dtype: str = setting(
        "auto", "auto: the checkpoint's own on a GPU; on a CPU bfloat16 where it has the instructions, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip
    attention: str = setting(
        "auto", "attention backend; auto: triton on a GPU, native on a CPU that has the kernels for it, else sdpa",
        choices=("auto", "flash", "triton", "native", "sdpa"),
    )  # fmt: skip
    cpu_kernels: str = setting(
        "auto", "packed weights and own kernels on a CPU; auto: where the CPU has AVX512-BF16 and they were built",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    merge_linears: str = setting(
        "auto", "one product for linear layers sharing an input (q/k/v, gate/up); auto: on a GPU and for CPU kernels",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    compile: str = setting(
        "off", "compile decoder layers with torch.compile at start, which takes a while and a C++ compiler",
        choices=("on", "off"),
    )  # fmt: skip
    quantization: str = setting(
        "none", "weights of linear layers, quantised at load: int8, int4 (bfloat16 only) or fp8 (GPUs only)",
        choices=("none", "int8", "int4", "fp8"),
    )  # fmt: skip
    threads: int = setting(0, "compute threads, of each rank; 0: one per core this process may use", minimum=0)
    tensor_parallel: int = setting(
        1, "ranks, processes with a part of the model each, on cuda:0 and up or on the CPU; 1: the model is not split",
        minimum=1, maximum=64,
    )  # fmt: skip
    block_size: int = setting(16, "positions per KV block", minimum=1, maximum=256)
    kv_memory: int = setting(
        0,
        "bytes for the KV cache, of each rank, with K/M/G suffix; 0: sized from free memory",
        minimum=0,
        parse=bytes_of,
    )
    gpu_memory_share: float = setting(
        0.9, "of a GPU's memory that the weights leave free: what steps and the KV cache sized from it may use",
        minimum=0.5, maximum=0.98,
    )  # fmt: skip
    max_context_tokens: int = setting(
        0, "longest prompt plus output; 0: what the model allows and the KV cache holds", minimum=0
    )
    max_batch_size: int = setting(
        0, "most sequences computed in one step; 0: 64 on a CPU, 256 on a GPU", minimum=0, maximum=4096
    )
    max_step_tokens: int = setting(
        0, "token budget of one step, decodes and prefill chunks together; 0: 512 on a CPU, 8192 on a GPU", minimum=0
    )
    overlap: str = setting(
        "auto", "launch a step before the one before it is read; auto: on a GPU", choices=("auto", "on", "off")
    )
    speculation: str = setting(
        "auto", "draft tokens and verify several at once, for requests that do not say; ngram: what followed the same "
        "tokens before; draft: the draft model's; both: that where nothing is found; auto: both with a draft model, "
        "else ngram on a CPU and off on a GPU", choices=("auto", "off", "ngram", "draft", "both"),
    )  # fmt: skip
    draft_model: str = setting(
        "", "smaller model with the same vocabulary, named as --model is, that drafts; its cache is part of --kv-memory"
    )
    draft_quantization: str = setting(
        "none", "as --quantization, of the draft model", choices=("none", "int8", "int4", "fp8")
    )
    speculation_adaptive: bool = setting(
        True, "shorten drafts, to none, where they take more time than they save; else always draft what is found"
    )
    speculation_length: int = setting(8, "most tokens drafted at once for a sequence", minimum=1, maximum=64)
    cuda_graphs: str = setting(
        "auto",
        "record decode steps and replay them; auto: on a GPU, where the model allows it",
        choices=("auto", "off"),
    )
    lazy_graphs: bool = setting(False, "record a batch size once some steps had it, not all of them at start")
    max_queued_requests: int = setting(1024, "requests that may wait; one more is refused", minimum=1)
    max_queued_tokens: int = setting(
        1_000_000, "prompt tokens that may wait; a request past that is refused", minimum=1
    )
    engine_timeout_s: float = setting(
        120.0, "seconds without a sign of the engine process after which it is taken to hang and started anew; must be "
        "more than its longest step takes; 0: never", minimum=0,
    )  # fmt: skip
    prefix_cache: str = setting(
        "shared", "reuse the KV blocks of equal prompt beginnings: among all, within each tenant only, or not at all",
        choices=("shared", "tenant", "off"),
    )  # fmt: skip
    tenant_weights: tuple[tuple[str, float], ...] = setting(
        (), "shares of tenants that wait at the same time, as NAME=WEIGHT,...; 1 for those not named", parse=weights_of
    )
    admission_window_ms: float = setting(
        0.0, "how long new requests wait to be started together; 0: not at all. Running ones never wait",
        minimum=0, maximum=60_000,
    )  # fmt: skip
    admission_window_requests: int = setting(
        0, "start new requests once so many wait, or when the window above ends; 0: the window alone", minimum=0
    )
    adapters: tuple[tuple[str, str], ...] = setting(
        (), "LoRA adapters (PEFT folders) loaded at start, as NAME=FOLDER,...; requests ask for them by name",
        parse=adapters_of,
    )  # fmt: skip
    adapter_folder: str = setting(
        "", "folder below which adapters may be loaded while this tier runs; empty: none can be"
    )
    max_adapters: int = setting(64, "most adapters that are loaded at once, on the host", minimum=1, maximum=4096)
    max_adapter_rank: int = setting(64, "highest rank of an adapter", minimum=1, maximum=512)
    adapter_slots: int = setting(
        8, "most adapters on the device at once; the least recently used one gives way", minimum=1, maximum=256
    )
    adapter_memory: int = setting(
        256 * 2**20, "most bytes of adapters on the device at once, with K/M/G suffix", minimum=1, parse=bytes_of
    )
    check_invariants: bool = setting(
        False, "see that blocks, tokens and ends add up after every step, and every second what is counted outside the "
        "engine, and say in the log where they do not: for tests, slow",
    )  # fmt: skip
    mock_prefill_tokens_per_s: float = setting(50_000.0, "mock engine: prompt tokens computed per second", minimum=1)
    mock_step_ms: float = setting(20.0, "mock engine: time of one step", minimum=0)
    mock_vocab_size: int = setting(49_152, "mock engine: vocabulary size", minimum=2)
    mock_max_context_tokens: int = setting(8_192, "mock engine: longest prompt plus output", minimum=2)
    mock_kv_blocks: int = setting(65_536, "mock engine: KV blocks", minimum=2)

    @property
    def takes_adapters(self) -> bool:
        """Whether there are adapters, or may be later."""
        return bool(self.adapters or self.adapter_folder)


@dataclass(frozen=True, kw_only=True)
class ModelTierSettings(ServerSettings, EngineSettings):
    """Everything `python -m model_svc` accepts."""

    port: int = setting(50053, "gRPC port", minimum=0, maximum=65535)
    metrics_port: int = setting(9466, "Prometheus port; 0 turns it off", minimum=0, maximum=65535)
    vllm_engine: bool = setting(
        False, "answer vllm.grpc.engine.VllmEngine too, by which Shepherd Model Gateway (smg) uses workers; extra `smg`"
    )

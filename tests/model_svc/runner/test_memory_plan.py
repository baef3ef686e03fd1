"""What becomes of a device's memory, as it is told at start."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model_svc.runner import memory_plan
from model_svc.runner.memory import StepMemory
from model_svc.runner.memory_plan import MemoryPlan, num_bytes_of
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.logs import JsonFormatter, ReadableFormatter

PLAN = MemoryPlan("cuda:0", 2**34, StepMemory(3 * 2**28, 2**27), 2**26, 4096, 16, 2**35, 2**30)


def logged(plan: MemoryPlan, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger=memory_plan.__name__):
        plan.log()
    (record,) = caplog.records
    return record


def test_people_read_a_line_for_each_part(caplog: pytest.LogCaptureFixture) -> None:
    line = ReadableFormatter("engine").format(logged(PLAN, caplog))
    assert line.split("engine    ")[1].splitlines() == [
        "memory of cuda:0",
        "  weights           16384 MiB",
        "  largest step        768 MiB",
        "  decode graphs       128 MiB",
        "  adapters             64 MiB",
        "  KV cache          32768 MiB  4096 blocks, 65536 tokens",
        "  free               1024 MiB",
    ]


def test_what_there_is_none_of_has_no_line(caplog: pytest.LogCaptureFixture) -> None:
    line = ReadableFormatter("engine").format(logged(replace(PLAN, steps=None, adapters=0), caplog))
    assert [row.strip().split("  ")[0] for row in line.splitlines()[1:]] == [
        "weights",
        "largest step",
        "KV cache",
        "free",
    ]
    assert "  largest step   not measured" in line


def test_programs_read_one_record(caplog: pytest.LogCaptureFixture) -> None:
    event = json.loads(JsonFormatter("engine").format(logged(PLAN, caplog)))
    assert {name: value for name, value in event.items() if name not in ("time", "level", "tier", "logger")} == {
        "message": "memory of cuda:0", "weights_bytes": 2**34, "step_bytes": 3 * 2**28, "graph_bytes": 2**27,
        "adapter_bytes": 2**26, "kv_bytes": 2**35, "kv_blocks": 4096, "kv_tokens": 65536, "free_bytes": 2**30,
    }  # fmt: skip


def test_the_division_is_logged_at_start(tiny_folder: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=memory_plan.__name__):
        info = tiny_runner_of(tiny_folder("llama"), kv_memory=2**20).info
    (record,) = [record for record in caplog.records if record.name == memory_plan.__name__]
    event = json.loads(JsonFormatter("engine").format(record))
    assert event["message"] == "memory of cpu" and event["kv_blocks"] == info.num_blocks
    assert event["weights_bytes"] > 0 and 0.9 * 2**20 < event["kv_bytes"] <= 2**20 and "step_bytes" not in event


def test_the_draft_models_weights_and_cache_are_counted(
    tiny_folder: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    told = []
    for draft in ("", tiny_folder("llama")):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=memory_plan.__name__):
            tiny_runner_of(tiny_folder("llama"), draft_model=draft)
        (record,) = [record for record in caplog.records if record.name == memory_plan.__name__]
        told.append(json.loads(JsonFormatter("engine").format(record))["weights_bytes"])
    assert told[1] == 2 * told[0]


def test_weights_that_are_shared_count_once() -> None:
    first, second = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)
    both = torch.nn.Sequential(first, second)
    assert num_bytes_of(both) == 2 * 256
    second.weight = first.weight
    assert num_bytes_of(both) == 256

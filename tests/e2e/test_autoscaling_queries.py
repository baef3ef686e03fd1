"""What the autoscalers of deploy/kubernetes ask for, asked of a real Prometheus that scrapes real tiers under load.

prometheus-adapter's part, filling in its templates, is done here; its own discovery and API are not run.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import FOLDER
from tests.e2e.prometheus import Prometheus, start_prometheus
from tests.e2e.tier_processes import TierProcesses
from tests.waiting import wait_for, wait_until_serving
from tokenwire.addresses import free_ports
from tokenwire.client import AsyncClient

pytestmark = [pytest.mark.model, pytest.mark.extended]

NAMESPACE = "tokenwire"
RULES = yaml.safe_load((FOLDER / "components" / "autoscaling" / "prometheus-adapter.yaml").read_text())
PODS = ("model-0", "model-1")
FILLED = {
    "Pods": {"<<.LabelMatchers>>": f'namespace="{NAMESPACE}",pod=~"{"|".join(PODS)}"', "<<.GroupBy>>": "pod"},
    "External": {"<<.LabelMatchers>>": f'namespace="{NAMESPACE}"', "<<.GroupBy>>": ""},
}


def query_of(kind: str, rule: dict[str, Any]) -> str:
    """A rule's query as prometheus-adapter sends it."""
    query: str = rule["metricsQuery"]
    for template, value in FILLED[kind].items():
        query = query.replace(template, value)
    assert "<<" not in query
    return query


@pytest.fixture(scope="module")
def stack(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Prometheus]]:
    """A gateway's target, and who scrapes the tiers."""
    folder = tmp_path_factory.mktemp("autoscaling")
    ports, metrics = free_ports(5), free_ports(5)
    gateway, http, tokenizer, *models = ports
    jobs = dict(zip(("gateway-0", "tokenizer-0", *PODS), metrics, strict=False))
    with ExitStack() as started:
        tiers = started.enter_context(TierProcesses(folder))
        for pod, port in zip(PODS, models, strict=True):
            tiers.start(
                "model_svc", "--engine", "mock", "--port", str(port), "--metrics-port", str(jobs[pod]),
                "--max-batch-size", "2", "--mock-kv-blocks", "200", "--mock-max-context-tokens", "1024",
            )  # fmt: skip
        tiers.start(
            "tokenizer_svc", "--port", str(tokenizer), "--metrics-port", str(jobs["tokenizer-0"]),
            "--model-targets", ",".join(f"127.0.0.1:{port}" for port in models),
        )  # fmt: skip
        tiers.start(
            "gateway", "--port", str(gateway), "--http-port", str(http), "--metrics-port", str(jobs["gateway-0"]),
            "--tokenizer-targets", f"127.0.0.1:{tokenizer}",
        )  # fmt: skip
        wait_until_serving(f"127.0.0.1:{gateway}")
        config = {
            "global": {"scrape_interval": "500ms"},
            "scrape_configs": [
                {
                    "job_name": "tokenwire",
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": NAMESPACE, "pod": pod}}
                        for pod, port in jobs.items()
                    ],
                }
            ],
        }
        found = start_prometheus(started, folder, metrics[4], config)
        wait_for(lambda: found.scrapes_all(len(jobs)))
        yield f"127.0.0.1:{gateway}", found


def test_every_query_answers_and_follows_the_load(stack: tuple[str, Prometheus]) -> None:
    target, prometheus = stack
    (pods,), (external,) = RULES["rules"], RULES["externalRules"]
    for rule in (pods, external):
        assert prometheus.get("series", **{"match[]": rule["seriesQuery"]}), rule["seriesQuery"]
    kv_used, waiting = query_of("Pods", pods), query_of("External", external)
    assert prometheus.values("tokenwire_model_kv_total_blocks") == dict.fromkeys(PODS, 200)
    assert prometheus.values(kv_used) == dict.fromkeys(PODS, 0.0)
    assert prometheus.values(waiting) == {"": 0.0}

    async def main() -> tuple[dict[str, float], float]:
        async with AsyncClient(target) as client:
            options: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.0}
            streams = [client.generate(f"Story {number}", **options) for number in range(40)]
            try:
                ends_s = time.monotonic() + 30
                while True:
                    kv = await asyncio.to_thread(prometheus.values, kv_used)
                    (number,) = (await asyncio.to_thread(prometheus.values, waiting)).values()
                    if min(kv.values()) > 0 and number >= 30:
                        return kv, number
                    assert time.monotonic() < ends_s, (kv, number)
                    await asyncio.sleep(0.2)
            finally:
                for stream in streams:
                    stream.close()

    kv, number = asyncio.run(main())
    print(f"\n40 streams at two model tiers of two sequences each: {number:g} wait; KV cache in use {kv}")
    assert set(kv) == set(PODS) and all(0 < ratio <= 1 for ratio in kv.values())
    assert number <= 40
    wait_for(lambda: prometheus.values(waiting) == {"": 0.0})


def test_without_a_tokenizer_tier_the_queues_alone_count(stack: tuple[str, Prometheus]) -> None:
    _, prometheus = stack
    query = query_of("External", RULES["externalRules"][0])
    assert prometheus.values(query.replace("tokenwire_tokenizer_held_requests", "nothing_of_that_name")) == {"": 0.0}

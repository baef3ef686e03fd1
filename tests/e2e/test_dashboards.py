"""A real Prometheus scrapes all tiers under load: every panel of the dashboards has data, and every rule evaluates."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.dashboards import DASHBOARDS, GPU, Dashboard
from tests.deploy.alerts import ALERTS, FILES, RULES
from tests.e2e.prometheus import Prometheus, start_prometheus
from tests.e2e.tier_processes import TierProcesses
from tests.waiting import wait_for, wait_until_serving
from tokenwire.addresses import free_ports
from tokenwire.client import AsyncClient
from tokenwire.errors import TokenwireError

pytestmark = [pytest.mark.model, pytest.mark.extended]

LOAD_S = 8.0


@pytest.fixture(scope="module")
def prometheus(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """After some seconds of load."""
    folder = tmp_path_factory.mktemp("dashboards")
    gateway, http, tokenizer, *models = free_ports(5)
    *metrics, port = free_ports(5)
    with ExitStack() as started:
        tiers = started.enter_context(TierProcesses(folder))
        for model, scraped in zip(models, metrics, strict=False):
            tiers.start(
                "model_svc", "--engine", "mock", "--port", str(model), "--metrics-port", str(scraped),
                "--max-batch-size", "4", "--mock-kv-blocks", "200", "--mock-max-context-tokens", "1024",
            )  # fmt: skip
        tiers.start(
            "tokenizer_svc", "--port", str(tokenizer), "--metrics-port", str(metrics[2]), "--workers", "2",
            "--model-targets", ",".join(f"127.0.0.1:{model}" for model in models),
        )  # fmt: skip
        tiers.start(
            "gateway", "--port", str(gateway), "--http-port", str(http), "--metrics-port", str(metrics[3]),
            "--tokenizer-targets", f"127.0.0.1:{tokenizer}",
        )  # fmt: skip
        wait_until_serving(f"127.0.0.1:{gateway}")
        jobs = {"model": metrics[:2], "tokenizer": metrics[2:3], "gateway": metrics[3:]}
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
            "rule_files": list(map(str, FILES)),
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{each}" for each in ports]}]}
                for job, ports in jobs.items()
            ],
        }
        found = start_prometheus(started, folder, port, config)
        wait_for(lambda: found.scrapes_all(4))
        asyncio.run(load(f"127.0.0.1:{gateway}", f"http://127.0.0.1:{http}"))
        yield found


async def load(target: str, url: str) -> None:
    """Some of everything: streams, HTTP, repeated prompts, stop strings, errors."""
    ends_s = time.monotonic() + LOAD_S
    options: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "temperature": 0.0}

    async def stream(client: AsyncClient, number: int) -> None:
        while time.monotonic() < ends_s:
            prompt = "Once upon a time there was a story that was told again and again. " * 4
            async for _ in client.generate(f"{prompt}{number % 3}", stop=["zzz", "the end"], **options):
                pass

    async def ask(client: httpx.AsyncClient) -> None:
        body = {"model": "smollm2-135m-instruct", "prompt": "hello", "max_tokens": 8}
        while time.monotonic() < ends_s:
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            assert (await client.post("/v1/completions", json=body | {"max_tokens": -1})).status_code == 400

    async with AsyncClient(target) as client, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        await asyncio.gather(*(stream(client, number) for number in range(12)), ask(http))
        with pytest.raises(TokenwireError):
            async for _ in client.generate("too much", max_tokens=10**6):
                pass
        with suppress(TokenwireError):
            async for _ in client.generate("too long", timeout_s=0.2, **options | {"max_tokens": 900}):
                pass


def has_numbers(prometheus: Prometheus, query: str) -> bool:
    found = prometheus.get("query", query=query)["result"]
    return any(math.isfinite(float(sample["value"][1])) for sample in found)


@pytest.mark.parametrize("dashboard", [each for each in DASHBOARDS if each is not GPU], ids=lambda each: each.uid)
def test_every_panel_has_data(prometheus: Prometheus, dashboard: Dashboard) -> None:
    queries = [query for row in dashboard.rows for panel in row for query, _ in panel.queries]
    print(f"\n{dashboard.title}: {len(queries)} queries")
    assert len(queries) >= 8
    wait_for(lambda: not [query for query in queries if not has_numbers(prometheus, query)])


def test_panels_of_gpus_are_understood(prometheus: Prometheus) -> None:
    for query in [query for row in GPU.rows for panel in row for query, _ in panel.queries]:
        assert prometheus.get("query", query=query)["result"] == [], "there is no GPU here"


def test_every_rule_evaluates_and_nothing_fires(prometheus: Prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    states = {rule["name"]: rule["state"] for rule in rules if rule["type"] == "alerting"}
    assert states == dict.fromkeys(ALERTS, "inactive")
    assert prometheus.values("tokenwire:failed_requests:ratio_rate5m") == {"": 0.0}


def test_workers_are_counted_together(prometheus: Prometheus) -> None:
    at_the_edge = sum(prometheus.values("tokenwire_gateway_output_tokens_total").values())
    wait_for(lambda: sum(prometheus.values("tokenwire_tokenizer_output_tokens_total").values()) >= at_the_edge > 0)
    assert prometheus.values("max(tokenwire_tokenizer_running_sequences)") == {"": 0.0}
    assert prometheus.values('tokenwire_tokenizer_model_replicas{state="ready"}') == {"": 2.0}


def test_a_first_request_out_of_time_is_a_rise(prometheus: Prometheus) -> None:
    out_of_time = 'tokenwire_gateway_requests_total{outcome=~"deadline|deadline_exceeded"}'
    wait_for(lambda: sum(prometheus.values(f"sum({out_of_time})").values()) == 1)
    wait_for(lambda: sum(prometheus.values(f"sum(increase({out_of_time}[2m]))").values()) > 0.9)

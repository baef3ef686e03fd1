"""The alerts of deploy/prometheus: promtool checks the rules and fires each alert on made-up series, and only then.

`promtool` is Debian's, of the package `prometheus`.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.metrics_table import metrics
from scripts.prometheus_rules import RESOURCES, resources
from tests.deploy.alerts import ALERTS, FILES, FOLDER, GROUPS, ROOT, RULES
from tests.interop.environments import not_to_be_had


@dataclass
class Case:
    """Series, one value each `step`, and whether the alert fires at some time."""

    alert: str
    series: dict[str, str]
    at: str
    fires: bool
    labels: dict[str, str] = field(default_factory=dict)
    step: str = "1m"


FIRST = "tokenwire_gateway_first_text_seconds"


def requests(outcome: str, values: str) -> dict[str, str]:
    return {f'tokenwire_gateway_requests_total{{api="http.chat",outcome="{outcome}"}}': values}


def answers(slow: int, of: int, minutes: int) -> dict[str, str]:
    """So many a minute begin late."""
    return {
        f'{FIRST}_bucket{{api="http.chat",le="2.5"}}': f"0+{of - slow}x{minutes}",
        f'{FIRST}_count{{api="http.chat"}}': f"0+{of}x{minutes}",
    }


def unbegun(soon: int, of: int, minutes: int) -> dict[str, str]:
    """So many a minute are given up before they begin, `soon` of them within the objective's time."""
    name = "tokenwire_gateway_unbegun_seconds"
    return {
        f'{name}_bucket{{api="http.chat",le="2.5"}}': f"0+{soon}x{minutes}",
        f'{name}_count{{api="http.chat"}}': f"0+{of}x{minutes}",
    }


def up(**values: str) -> dict[str, str]:
    """One process of each tier named."""
    return {f'up{{job="{job}",instance="{job}"}}': series for job, series in values.items()}


def one(name: str, values: str, **labels: str) -> dict[str, str]:
    inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {f"{name}{{{inner}}}": values}


def each_8_minutes(number: int) -> str:
    """One more every eight minutes, so many times."""
    return " ".join(f"{value}x7" for value in range(number))


DAYS_3 = 3 * 24 * 6
"""In tens of minutes."""
SLOW = {"at": "70h", "step": "10m"}
USED, TOTAL = "tokenwire_model_kv_used_blocks", "tokenwire_model_kv_total_blocks"
MODEL = {"job": "model", "instance": "model:9466"}
UP = {"gateway": "1x12", "tokenizer": "1x12", "model": "1x12"}
REPLICAS = "tokenwire_tokenizer_model_replicas"
HUNG = requests("ok", "0+9x60 540x330") | requests("deadline_exceeded", "0x60 0+10x330")
"""For an hour all is well, then nothing is answered any more."""
CASES = [
    Case("TokenwireRequestsFail", requests("ok", "0+90x90") | requests("internal", "0+10x90"), "80m", True),
    Case("TokenwireRequestsFail", requests("ok", "0+96x700") | requests("unavailable", "0+4x700"), "690m", True),
    Case("TokenwireRequestsFail", requests("ok", "0+98x700") | requests("unavailable", "0+2x700"), "690m", False),
    Case("TokenwireRequestsFail", requests("ok", "0+90x90") | requests("invalid_argument", "0+10x90"), "80m", False),
    Case("TokenwireRequestsFail", requests("ok", "0x90"), "80m", False),
    Case("TokenwireRequestsFail", requests("ok", each_8_minutes(20)) | requests("internal", "0x64 1x60"), "68m", False),
    Case("TokenwireRequestsFail", requests("ok", "0+5x60 300x30") | requests("unavailable", "0x60 0+5x30"),
         "75m", True),
    Case("TokenwireRequestsFail", requests("ok", "0+2x360 720x60") | requests("internal", "0x360 0+2x60"),
         "390m", True),
    Case("TokenwireRequestsFailSlowly",
         requests("ok", f"0+9x{DAYS_3}") | requests("internal", f"0+1x{DAYS_3}"), fires=True, **SLOW),
    Case("TokenwireRequestsFailSlowly",
         requests("ok", f"0+98x{DAYS_3}") | requests("internal", f"0+2x{DAYS_3}"), fires=True, **SLOW),
    Case("TokenwireRequestsFailSlowly",
         requests("ok", f"0+998x{DAYS_3}") | requests("internal", f"0+2x{DAYS_3}"), fires=False, **SLOW),
    Case("TokenwireAnswersBeginLate", answers(80, 100, 90), "80m", True),
    Case("TokenwireAnswersBeginLate", answers(10, 100, 90), "80m", False),
    Case("TokenwireAnswersBeginLate", unbegun(0, 10, 360), "355m", True),
    Case("TokenwireAnswersBeginLate", answers(0, 100, 90) | unbegun(0, 300, 90), "80m", True),
    Case("TokenwireAnswersBeginLate", answers(0, 100, 90) | unbegun(300, 300, 90), "80m", False),
    Case("TokenwireAnswersBeginLate", answers(0, 100, 90) | unbegun(0, 10, 90), "80m", False),
    Case("TokenwireAnswersBeginLate",
         one(f"{FIRST}_bucket", "0x70", api="http.chat", le="2.5")
         | one(f"{FIRST}_count", "0x10 1x60", api="http.chat"), "14m", False),
    Case("TokenwireAnswersBeginLateSlowly", answers(10, 100, DAYS_3), fires=True, **SLOW),
    Case("TokenwireAnswersBeginLateSlowly", answers(4, 100, DAYS_3), fires=False, **SLOW),
    Case("TokenwireTierDown", up(**UP) | one("up", "1 1 0x10", **MODEL), "6m", True, MODEL),
    Case("TokenwireTierDown", up(**UP) | one("up", "1 1 0 1x10", **MODEL), "6m", False),
    Case("TokenwireTierDown", up(**UP) | one("up", "0x10", job="node"), "6m", False),
    *(Case("TokenwireTierDown", up(**UP | {tier: "1 1 stale"}), "6m", True, {"job": tier}) for tier in UP),
    *(Case("TokenwireTierDown", up(**{other: UP[other] for other in UP if other != tier}), "6m", True, {"job": tier})
      for tier in UP),
    Case("TokenwireNoModelTier", one(REPLICAS, "2 0x10", state="ready"), "5m", True),
    Case("TokenwireNoModelTier", one(REPLICAS, "2 2 stale", state="ready"), "5m", True, {"state": "ready"}),
    Case("TokenwireNoModelTier",
         one(REPLICAS, "0x10", state="ready", instance="a") | one(REPLICAS, "1x10", state="ready", instance="b"),
         "5m", False),
    Case("TokenwireModelTierPassedOver",
         one("tokenwire_tokenizer_model_replicas", "1x20", state="ejected"), "15m", True, {"state": "ejected"}),
    Case("TokenwireModelTierPassedOver",
         one("tokenwire_tokenizer_model_replicas", "1x20", state="draining"), "15m", False),
    Case("TokenwireEngineLost", one("tokenwire_model_engine_restarts_total", "0x5 1x10", **MODEL), "10m", True, MODEL),
    Case("TokenwireEngineLost", one("tokenwire_model_engine_restarts_total", "1x60", **MODEL), "50m", False),
    Case("TokenwireOutOfMemory", one("tokenwire_model_out_of_memory_total", "0x5 3x10", **MODEL), "10m", True, MODEL),
    Case("TokenwireOutOfMemory", one("tokenwire_model_out_of_memory_total", "3x60", **MODEL), "50m", False),
    Case("TokenwireRequestsWaitLong", one("tokenwire_model_oldest_queued_seconds", "0+60x10", **MODEL), "5m", True),
    Case("TokenwireRequestsWaitLong", one("tokenwire_tokenizer_oldest_held_seconds", "0+60x10"), "5m", True),
    Case("TokenwireRequestsWaitLong", one("tokenwire_model_oldest_queued_seconds", "20x10", **MODEL), "5m", False),
    Case("TokenwireRequestsRefused",
         requests("ok", "0+90x30") | requests("resource_exhausted", "0+10x30"), "25m", True),
    Case("TokenwireRequestsRefused",
         requests("ok", "0+97x30") | requests("resource_exhausted", "0+3x30"), "25m", False),
    Case("TokenwireRequestsRunOutOfTime", HUNG, "50m", False),
    Case("TokenwireRequestsRunOutOfTime", HUNG, "380m", True),
    Case("TokenwireRequestsRunOutOfTime", requests("ok", "0+90x30") | requests("deadline", "0+10x30"), "25m", True),
    Case("TokenwireRequestsRunOutOfTime", requests("ok", "0+97x30") | requests("deadline", "0+3x30"), "25m", False),
    Case("TokenwireKvCacheFull",
         one(USED, "99x30", **MODEL) | one(TOTAL, "100x30", **MODEL)
         | one("tokenwire_model_preemptions_total", "0+1x30", **MODEL), "25m", True, MODEL),
    Case("TokenwireKvCacheFull",
         one(USED, "99x30", **MODEL) | one(TOTAL, "100x30", **MODEL)
         | one("tokenwire_model_preemptions_total", "7x30", **MODEL), "25m", False),
    Case("TokenwireGpuSlowedDown",
         one("tokenwire_model_gpu_slowdown_state", "1x30", gpu="0", reason="power brake"), "25m", True,
         {"gpu": "0", "reason": "power brake"}),
    Case("TokenwireGpuSlowedDown",
         one("tokenwire_model_gpu_slowdown_state", "1x30", gpu="0", reason="power cap"), "25m", False),
    Case("TokenwireGpuMemoryErrors",
         one("tokenwire_model_gpu_uncorrected_errors_total", "0x5 1x5", gpu="1"), "9m", True, {"gpu": "1"}),
    Case("TokenwireGpuMemoryErrors", one("tokenwire_model_gpu_uncorrected_errors_total", "2x10", gpu="1"), "9m", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        not_to_be_had("promtool is not installed (Debian's package prometheus)")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.extended
def test_promtool_accepts_the_rules_and_the_configuration(promtool: str, tmp_path: Path) -> None:
    said = run(promtool, "check", "rules", *map(str, FILES))
    assert said.count("SUCCESS") == len(FILES) >= 2
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert [sorted(map(str, FOLDER.glob(pattern))) for pattern in config["rule_files"]] == [list(map(str, FILES))]
    run(promtool, "check", "config", str(FOLDER / "prometheus.yml"))


@pytest.mark.extended
def test_each_alert_fires_when_it_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    tests: list[dict[str, Any]] = [
        {
            "interval": case.step,
            "name": f"{case.alert} {number}",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "alert_rule_test": [{"alertname": case.alert, "eval_time": case.at, "exp_alerts": expected(case)}],
        }
        for number, case in enumerate(CASES)
    ]
    for step in {case.step for case in CASES}:
        of_step = [test for test in tests if test["interval"] == step]
        path = tmp_path / f"alerts-{step}.yml"
        content = {
            "rule_files": list(map(str, FILES)),
            "group_eval_order": [group["name"] for group in GROUPS],  # any else: an alert may miss what is recorded
            "evaluation_interval": step,
            "tests": of_step,
        }
        path.write_text(yaml.safe_dump(content))
        assert "SUCCESS" in run(promtool, "test", "rules", str(path))


def expected(case: Case) -> list[dict[str, Any]]:
    rule = ALERTS[case.alert]
    return [{"exp_labels": rule["labels"] | case.labels, "exp_annotations": rule["annotations"]}] if case.fires else []


def test_every_alert_is_tried_both_ways() -> None:
    for fires in (True, False):
        assert {case.alert for case in CASES if case.fires is fires} == set(ALERTS)


def test_every_alert_has_a_runbook() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    headings = re.findall(r"^#### (Tokenwire\w+)$", page, re.MULTILINE)
    assert headings == list(ALERTS), "in the order of the rules"
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/observability.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_kubernetes_is_given_the_same_rules() -> None:
    text = RESOURCES.read_text()
    assert text == resources(), "make protos"
    found = list(yaml.safe_load_all(text))
    assert [each["spec"] for each in found] == [yaml.safe_load(file.read_text()) for file in FILES]
    assert {each["kind"] for each in found} == {"PrometheusRule"}
    kustomization = yaml.safe_load((RESOURCES.parent / "kustomization.yaml").read_text())
    assert RESOURCES.name in kustomization["resources"]


def test_the_page_and_the_rules_agree_on_what_is_a_fault_of_ours() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    (asked,) = re.findall(
        r"^\| Share of requests that failed for a fault of ours \| `.*?outcome=~\"(.*?)\"", page, re.MULTILINE
    )
    of_rules = {
        outcomes
        for rule in RULES
        if rule.get("record", "").startswith("tokenwire:failed_requests:")
        for outcomes in re.findall(r'outcome=~"(.*?)"', rule["expr"])
    }
    assert of_rules == {asked.replace("\\|", "|")}
    for outcome in of_rules.pop().split("|"):
        assert f"`{outcome}`" in page.partition("**Requests that fail**")[2].partition("**Answers")[0]


def test_rules_ask_for_metrics_that_exist() -> None:
    known = {each.name for described in metrics().values() for each in described}
    asked = set(re.findall(r"\btokenwire_\w+", " ".join(rule["expr"] for rule in RULES)))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} <= known
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert set(re.findall(r"\btokenwire:[\w:]+", " ".join(rule["expr"] for rule in RULES))) == recorded

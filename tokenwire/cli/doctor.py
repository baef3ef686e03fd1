"""`tokenwire doctor`: can this machine serve? What needs torch is asked of `python -m model_svc doctor`, a process.

Each check is a small function from what it looks at to findings; none changes anything.
"""

import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import click

from tokenwire.addresses import is_free
from tokenwire.checks import Check, blocked, fail, from_json, ok, to_json, to_lines, warn
from tokenwire.cli.ports import holder, tokenwire_tier
from tokenwire.errors import NotFound, TokenwireError
from tokenwire.model_catalog import CATALOG, DEFAULT_MODEL
from tokenwire.models import ModelStore, home
from tokenwire.settings import is_service_link

OLDEST_PYTHON = (3, 11)
PORTS = (
    ("gateway", "port", 50051, True),
    ("gateway", "http_port", 8080, False),
    ("tokenizer", "port", 50052, True),
    ("model", "port", 50053, True),
    ("gateway", "metrics_port", 9464, False),
    ("tokenizer", "metrics_port", 9465, False),
    ("model", "metrics_port", 9466, False),
)
"""Tier, setting, default, and whether gRPC is spoken there."""
MODULES = {"gateway": "gateway", "tokenizer": "tokenizer_svc", "model": "model_svc"}
SHARED_VARIABLES = (
    "TOKENWIRE_HOME", "TOKENWIRE_LOG", "TOKENWIRE_TARGET", "TOKENWIRE_API_KEY", "TOKENWIRE_TLS_CA",
    "TOKENWIRE_TLS_CERTIFICATE", "TOKENWIRE_TLS_KEY", "TOKENWIRE_TLS_NAME",
)  # fmt: skip
LEAST_OPEN_FILES = 4096
PROCESS_TIMEOUT_S = 120


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON, for programs.")
@click.option("--model", help="The model that shall be served  [default: $TOKENWIRE_MODEL_MODEL or the default model]")
def doctor(as_json: bool, model: str | None) -> None:
    """Check whether this machine can serve; exit 1 and say what to do when something blocks it."""
    checks = findings(os.environ, model)
    click.echo(to_json(checks) if as_json else "\n".join(to_lines(checks)))
    if blocked(checks):
        raise SystemExit(1)


def findings(environ: Mapping[str, str], model: str | None = None) -> list[Check]:
    """Every check, in the order shown."""
    return [
        check_python(),
        *check_tier((sys.executable, "-m", "model_svc", "doctor", "--json")),
        *check_environment(environ),
        *check_ports(environ),
        check_model(ModelStore(), model or environ.get("TOKENWIRE_MODEL_MODEL") or DEFAULT_MODEL),
        check_disk(home()),
        check_open_files(),
    ]


def check_python(version: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    """The Python that runs."""
    text = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return fail("python", f"{text} is too old", "install Python 3.11 or newer and make the environment anew")
    return ok("python", f"{text} on {platform.system()} {platform.machine()}")


def check_tier(command: Sequence[str]) -> list[Check]:
    """The model tier's own findings, from its process."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S, check=False)
        return from_json(result.stdout)
    except subprocess.TimeoutExpired:
        detail = f"`{' '.join(command[1:])}` did not end within {PROCESS_TIMEOUT_S} s"
        return [
            fail("model tier", detail, "run it by hand to see where it hangs; a GPU driver in a bad state can do this")
        ]
    except (ValueError, KeyError, TypeError):
        said = result.stderr.strip().splitlines()
        detail = f"its diagnostics did not run (exit {result.returncode}): {said[-1] if said else 'no message'}"
        missing = "No module named" in result.stderr
        fix = "pip install 'tokenwire[model]'" if missing else f"run `python {' '.join(command[1:])}` to see why"
        return [fail("model tier", detail, fix)]


def check_environment(environ: Mapping[str, str]) -> list[Check]:
    """TOKENWIRE_* variables that no one reads. The model tier's own are checked by its process, bad values too."""
    given = [key for key, text in environ.items() if key.startswith("TOKENWIRE_") and not is_service_link(key, text)]
    checks: list[Check] = []
    for tier in ("gateway", "tokenizer"):
        prefix = f"TOKENWIRE_{tier.upper()}_"
        own = [key for key in given if key.startswith(prefix)]
        if own:
            checks += check_tier_variables(MODULES[tier], prefix, own)
    prefixes = tuple(f"TOKENWIRE_{tier.upper()}_" for tier in MODULES)
    for key in given:
        if not key.startswith(prefixes) and key not in SHARED_VARIABLES:
            allowed = ", ".join([*SHARED_VARIABLES, *(prefix + "*" for prefix in prefixes)])
            checks.append(warn("environment", f"{key} is read by nothing", f"unset it; read are {allowed}"))
    return checks or [ok("environment", f"{len(given)} TOKENWIRE_* variables, all known" if given else "no overrides")]


def check_tier_variables(module: str, prefix: str, keys: Sequence[str]) -> list[Check]:
    """A tier's variables against the settings its `--help` lists."""
    result = subprocess.run(
        (sys.executable, "-m", module, "--help"), capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S, check=False
    )
    if result.returncode != 0:
        said = result.stderr.strip().splitlines()
        detail = f"{module} --help did not run: {said[-1] if said else 'no message'}"
        return [warn("environment", detail, f"pip install 'tokenwire[{module.removesuffix('_svc')}]'")]
    known = {flag.replace("-", "_") for flag in re.findall(r"^\s+--([a-z][a-z0-9-]*)", result.stdout, re.MULTILINE)}
    unknown = [key for key in keys if key[len(prefix) :].lower() not in known]
    fix = f"unset it; `python -m {module} --help` lists what there is"
    return [fail("environment", f"{key}: {module} has no such setting and will not start", fix) for key in unknown]


def check_ports(environ: Mapping[str, str]) -> list[Check]:
    """Every tier's ports: free, or who holds them."""
    checks: list[Check] = []
    for tier, setting, default, speaks_grpc in PORTS:
        variable = f"TOKENWIRE_{tier.upper()}_{setting.upper()}"
        text = environ.get(variable, "")
        port = int(text) if text.isdigit() else default
        if 0 < port < 2**16:
            checks.append(check_port(f"port {port}", f"{MODULES[tier]} {setting}", port, variable, speaks_grpc))
    return checks


def check_port(name: str, purpose: str, port: int, variable: str, speaks_grpc: bool) -> Check:
    """One port."""
    if is_free(port):
        return ok(name, f"free, for {purpose}")
    tier = tokenwire_tier(port, speaks_grpc=speaks_grpc)
    if tier:
        fix = f"nothing, or stop it before starting another; or choose another port with {variable}"
        return warn(name, f"wanted for {purpose}: Tokenwire is running there already ({tier}; {holder(port)})", fix)
    fix = f"stop that process or choose another port with {variable}"
    return fail(name, f"wanted for {purpose}: taken by {holder(port)}", fix)


def check_model(store: ModelStore, model: str) -> Check:
    """The model that would be served: complete, to be fetched at start, or damaged."""
    try:
        folder = store.resolve(model, convert=False)
    except NotFound as error:
        missing = [name for name in ("accelerate", "gguf") if find_spec(name) is None]
        known = model == "default" or model in CATALOG or Path(model).suffix.lower() == ".gguf"
        if known and missing:
            fix = "pip install 'tokenwire[convert]', or copy the folder from a machine that has it"
            return fail("model", f"{model}: not here, and {' and '.join(missing)} to convert it are not installed", fix)
        if known and (model in CATALOG or Path(model).is_file() or model == "default"):
            return warn(
                "model", f"{model}: not here yet", f"tokenwire models pull {model} (the first start does it too)"
            )
        return fail("model", str(error), "name another model, or fetch this one first")
    except TokenwireError as error:
        return fail("model", str(error), f"tokenwire models pull --force {model}, or name another model")
    return ok("model", f"{model}: {folder}")


def check_disk(folder: Path) -> Check:
    """Room where models are kept."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    needed = CATALOG[DEFAULT_MODEL].disk_bytes
    if free < needed:
        fix = "free some space or set TOKENWIRE_HOME to a folder on another disk"
        return warn("disk", f"{detail}; fetching the default model needs {needed / 1e9:.2f} GB", fix)
    return ok("disk", detail)


def check_open_files() -> Check:
    """Connections and streams are file descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_OPEN_FILES:
        return warn("open files", f"limit {soft}", f"ulimit -n {LEAST_OPEN_FILES} or more, for many connections")
    return ok("open files", f"limit {'none' if soft == resource.RLIM_INFINITY else soft}")

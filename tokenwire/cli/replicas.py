"""Several model tiers on one machine: a port, a metrics port and a GPU or a share of the cores for each.

How many GPUs and cores there are is asked of a process, `python -m model_svc places`: torch never loads here.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice

from tokenwire.addresses import is_free
from tokenwire.cli.tiers import METRICS_PORTS, SERVICE_PORTS, Replica, UpSettings
from tokenwire.errors import FailedPrecondition

PLACES_TIMEOUT_S = 120
HIGHEST_PORT = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Places:
    """What this machine has for model tiers."""

    gpus: int
    cores: int


def with_replicas(settings: UpSettings, environ: Mapping[str, str]) -> UpSettings:
    """The same with a place for each of several replicas; a single one is left as it is. Service ports are set.

    `environ` may name the device (TOKENWIRE_MODEL_DEVICE) and the threads of each (TOKENWIRE_MODEL_THREADS). Raises
    FailedPrecondition when there are fewer GPUs than replicas, and for what only a single one can be given.
    """
    number = settings.model_replicas
    if number == 1:
        return settings
    taken = {getattr(settings, name) for name in (*SERVICE_PORTS, *METRICS_PORTS)}
    ports = [settings.model_port, *islice(free_after(settings.model_port, taken), number - 1)]
    metrics = [0] * number
    if first := settings.model_metrics_port:
        metrics = [first, *islice(free_after(first, taken.union(ports)), number - 1)]
    if settings.engine == "mock":
        devices, threads = [""] * number, 0
    else:
        devices, threads = shares(number, environ)
    replicas = map(Replica, ports, metrics, devices, [threads] * number)
    return replace(settings, replicas=tuple(replicas))


def free_after(port: int, taken: Iterable[int]) -> Iterator[int]:
    """Free ports above this one, in order, without those of `taken`. Raises FailedPrecondition when they run out."""
    taken = set(taken)
    for candidate in count(port + 1):
        if candidate > HIGHEST_PORT:
            raise FailedPrecondition(f"no free port above {port} is left: give a lower one", reason="PORT_IN_USE")
        if candidate not in taken and is_free(candidate):
            yield candidate


def shares(number: int, environ: Mapping[str, str]) -> tuple[list[str], int]:
    """Each replica's device, and how many threads each computes with; 0: the tier's own choice."""
    device = environ.get("TOKENWIRE_MODEL_DEVICE", "auto")
    if device not in ("auto", "cpu", "cuda"):
        raise FailedPrecondition(
            f"TOKENWIRE_MODEL_DEVICE={device!r} with --model-replicas {number}: replicas are placed on cuda:0 to "
            f"cuda:{number - 1}, or on the CPU; give auto, cuda or cpu",
            reason="DEVICE_UNAVAILABLE",
        )
    places = places_here()
    if device == "cpu" or (device == "auto" and not places.gpus):
        asked = environ.get("TOKENWIRE_MODEL_THREADS", "0")
        return ["cpu"] * number, 0 if asked != "0" else max(1, places.cores // number)
    if places.gpus < number:
        raise FailedPrecondition(
            f"--model-replicas {number}: each takes a GPU of its own, and this machine has {places.gpus}; give at most "
            "that many, or TOKENWIRE_MODEL_DEVICE=cpu",
            reason="DEVICE_UNAVAILABLE",
        )
    return [f"cuda:{index}" for index in range(number)], 0


def places_here(command: tuple[str, ...] = (sys.executable, "-m", "model_svc", "places")) -> Places:
    """Ask the model tier's own process. Raises FailedPrecondition when it does not answer."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PLACES_TIMEOUT_S, check=True)
        return Places(**json.loads(result.stdout))
    except subprocess.TimeoutExpired:
        said = f"it did not end within {PLACES_TIMEOUT_S} s"
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no message"])[-1]
    except (ValueError, TypeError) as error:
        said = str(error)
    raise FailedPrecondition(
        f"--model-replicas: `{' '.join(command[1:])}` does not say what this machine has ({said}); `tokenwire doctor` "
        "may tell why",
        reason="NOT_INSTALLED",
    )

"""Who holds a TCP port of this machine, and whether it is a Tokenwire tier. Asks; changes nothing."""

import http.client
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc

from tokenwire.health import METHOD as HEALTH_CHECK

psutil: Any = importlib.import_module("psutil") if find_spec("psutil") else None
"""Not among the thin client's dependencies; without it, a port's holder stays nameless."""

TIERS = {
    "gateway": "tokenwire.v1.GenerationService",
    "tokenizer_svc": "tokenwire.v1.TokenizerService",
    "model_svc": "tokenwire.v1.ModelService",
}
"""A service by which each tier's health service is told from the others'."""
HEALTH_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING"}
PROBE_TIMEOUT_S = 1.0
UNSEEN = "a process this user may not see, or a socket that neither listens nor is connected"


def holder(port: int) -> str:
    """The process that listens on `port`, or has it for a connection, as far as this user may know."""
    if psutil is None:
        return "a process (install psutil to see which)"
    try:
        held = [each for each in psutil.net_connections("tcp") if each.laddr.port == port and each.pid]
    except psutil.AccessDenied:
        return UNSEEN
    for listener in (each for each in held if each.status == psutil.CONN_LISTEN):
        return _name(listener.pid)
    for connection in held:
        return f"a connection of {_name(connection.pid)}, not a server{_outgoing_ports()}"
    return UNSEEN


def _name(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (PID {pid})"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return f"PID {pid}"


def _outgoing_ports() -> str:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError:
        return ""
    return f" (outgoing connections get ports from {low} to {high}: servers are better off outside)"


def tokenwire_tier(port: int, *, speaks_grpc: bool, host: str = "127.0.0.1") -> str:
    """What Tokenwire tier answers on `port`, with its health: "model_svc, SERVING"; "" when it is something else."""
    return grpc_tier(host, port) if speaks_grpc else http_tier(host, port)


def grpc_tier(host: str, port: int) -> str:
    """Ask grpc.health.v1 for each tier's service. The two messages are one field each, so no stubs are needed."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        check = channel.unary_unary(HEALTH_CHECK, _health_request, _health_status)
        for tier, service in TIERS.items():
            try:
                status = check(service, timeout=PROBE_TIMEOUT_S)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    continue
                return ""
            return f"{tier}, {HEALTH_STATUS.get(status, 'UNKNOWN')}"
    return ""


def _health_request(service: str) -> bytes:
    name = service.encode()
    return b"\x0a" + bytes((len(name),)) + name  # field 1, length-delimited


def _health_status(message: bytes) -> int:
    return message[1] if message[:1] == b"\x08" else 0  # field 1, varint below 128


def http_tier(host: str, port: int) -> str:
    """Whether `/metrics` holds Tokenwire's."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return "its metrics answer" if b"tokenwire_" in connection.getresponse().read() else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()

"""Drives a client program through the contract's cases. Does not know how results are shown."""

from collections.abc import AsyncIterator, Sequence

from tokenwire.conformance import client_cases, client_session_cases
from tokenwire.conformance.client_program import ClientProgram
from tokenwire.conformance.results import Result, chosen, run_case

CLIENT_CASES = client_cases.cases.all + client_session_cases.cases.all
LONGER_S = 5.0
"""A case may take so much longer than its program, which is ended first and says why."""


async def run_client(command: str, *, names: Sequence[str] = (), timeout_s: float = 30.0) -> AsyncIterator[Result]:
    """Try each case in turn. Raises UnknownCase."""
    program = ClientProgram(command, timeout_s)
    for case in chosen(CLIENT_CASES, names):
        yield await run_case(case, program, timeout_s + LONGER_S)

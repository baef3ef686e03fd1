"""Cases and how they went. Does not know what a case tries."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from tokenwire.errors import TokenwireError
from tokenwire.status import from_rpc_error

S = TypeVar("S")


class CaseFailed(Exception):
    """What was seen is not what the contract says."""


class UnknownCase(ValueError):
    """No case has that name."""


class CaseSkipped(Exception):
    """The case cannot be tried here; says why."""


@dataclass(frozen=True, slots=True)
class Case(Generic[S]):
    """One thing to try on a subject."""

    name: str
    shows: str
    """What the contract says, in one sentence."""
    run: Callable[[S], Awaitable[None]]
    """Raises CaseFailed or CaseSkipped."""
    optional: bool = False
    """Of something that one may go without."""


class Cases(Generic[S]):
    """A list of cases, filled by its decorator."""

    def __init__(self) -> None:
        self.all: list[Case[S]] = []

    def case(
        self, name: str, shows: str, *, optional: bool = False
    ) -> Callable[[Callable[[S], Awaitable[None]]], Callable[[S], Awaitable[None]]]:
        """Add what is decorated."""

        def add(run: Callable[[S], Awaitable[None]]) -> Callable[[S], Awaitable[None]]:
            self.all.append(Case(name, shows, run, optional))
            return run

        return add


@dataclass(frozen=True, slots=True)
class Result:
    """How one case went."""

    name: str
    outcome: str
    """pass, fail or skip."""
    reason: str
    """Why it failed or was skipped; empty where it passed."""
    seconds: float
    shows: str
    optional: bool = False


def expect(true: bool, otherwise: str) -> None:
    """Raise CaseFailed with what was seen instead."""
    if not true:
        raise CaseFailed(otherwise)


async def run_case(case: Case[S], subject: S, timeout_s: float) -> Result:
    """Try one case."""
    begun = time.monotonic()
    outcome, reason = "pass", ""
    try:
        async with asyncio.timeout(timeout_s):
            await case.run(subject)
    except CaseSkipped as skipped:
        outcome, reason = "skip", str(skipped)
    except CaseFailed as failed:
        outcome, reason = "fail", str(failed)
    except TimeoutError:
        outcome, reason = "fail", f"nothing more came within {timeout_s:g} s"
    except grpc.RpcError as error:
        outcome, reason = "fail", f"the call ended with {describe(from_rpc_error(error))}"
    except Exception as error:
        outcome, reason = "fail", f"what came cannot be read: {type(error).__name__}: {error}"
    return Result(case.name, outcome, reason, time.monotonic() - begun, case.shows, case.optional)


def nothing_tried(results: Sequence[Result]) -> bool:
    """Whether all were skipped, and not for being optional alone."""
    skipped = [result for result in results if result.outcome == "skip"]
    return len(skipped) == len(results) and not all(result.optional for result in skipped)


def describe(error: TokenwireError) -> str:
    """An error in a sentence."""
    return f"{error.code} ({error.reason}): {error.message}"


def chosen(cases: Sequence[Case[S]], wanted: Sequence[str]) -> list[Case[S]]:
    """Those of these names, or whose name begins so up to a dot; all where none is named. Raises UnknownCase."""
    for name in wanted:
        if not any(case.name == name or case.name.startswith(f"{name}.") for case in cases):
            raise UnknownCase(f"there is no case {name!r}: {', '.join(case.name for case in cases)}")
    return [
        case
        for case in cases
        if not wanted or any(case.name == name or case.name.startswith(f"{name}.") for name in wanted)
    ]

"""Who makes the call that is being answered, and what they may: which tenant, which priorities, which models.

The gates of both protocols leave a `Proof` for the length of a call; whoever needs to know asks `identity_of_call`.
Does not know how callers prove who they are.
"""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol

from tokenwire.errors import FieldViolation, NotFound, PermissionDenied
from tokenwire.identity_file import ANY_TENANT, Grant
from tokenwire.requests import MAX_PRIORITY, RequestContext


@dataclass(frozen=True, slots=True)
class Identity:
    """One caller, checked."""

    tenant: str
    """`*`: the caller names it."""
    models: frozenset[str] | None
    """Names of models and adapters; None: all."""
    max_priority: int
    admin: bool
    known: bool = True
    """By what it showed; False: nobody was asked."""

    @classmethod
    def of(cls, grant: Grant) -> "Identity":
        """Of an entry in the identity file."""
        return cls(grant.tenant, grant.models, grant.max_priority, grant.admin)

    def restrict(self, context: RequestContext) -> RequestContext:
        """The same with the caller's own tenant. Raises PermissionDenied for another's, and for too high a priority."""
        if context.priority > self.max_priority:
            description = f"{context.priority} is not allowed for this caller: at most {self.max_priority}"
            raise PermissionDenied(
                f"context.priority: {description}",
                reason="PRIORITY_TOO_HIGH",
                violations=[FieldViolation("context.priority", description)],
            )
        if self.tenant in (ANY_TENANT, context.tenant):
            return context
        if context.tenant:
            description = "names another tenant than the caller's own: leave it out"
            raise PermissionDenied(
                f"context.tenant: {description}",
                reason="TENANT_MISMATCH",
                violations=[FieldViolation("context.tenant", description)],
            )
        return replace(context, tenant=self.tenant)

    def may_use(self, name: str) -> bool:
        """Whether a model or adapter may be asked for."""
        return self.models is None or name in self.models

    def refuse_model(self, name: str, adapter: str, served: Iterable[str]) -> None:
        """Raise NotFound for what may not be asked for, in the words for what is not there.

        `name` empty: the only one of `served`. An adapter stands for the model it belongs to.
        """
        if self.models is None:
            return
        wanted = [adapter or name] if adapter or name else list(served)
        if wanted and all(map(self.may_use, wanted)):
            return
        allowed = ", ".join(sorted(self.models)) or "none"
        asked = adapter or name
        what = f"model {asked!r:.80} does not exist, or this caller may not use it"
        raise NotFound(
            f"{what if asked else 'the request names no model'}; this caller may use: {allowed}",
            reason="MODEL_NOT_FOUND",
        )


class Proof(Protocol):
    """What a caller has shown."""

    def identity(self) -> Identity:
        """Who it is now. Raises Unauthenticated once that has lapsed: a session outlives what it was opened with."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A proof that does not lapse."""

    who: Identity

    def identity(self) -> Identity:
        """As Proof says."""
        return self.who


ANYBODY = Settled(Identity(ANY_TENANT, None, MAX_PRIORITY, True, known=False))
"""Where nobody is asked."""
NOBODY = Settled(Identity("", frozenset(), -MAX_PRIORITY, False, known=False))
"""On the paths that answer everybody, where others are asked."""

CURRENT: ContextVar[Proof] = ContextVar("tokenwire_identity", default=ANYBODY)
"""Set by the gates, for the length of a call."""


def identity_of_call() -> Identity:
    """Who makes this call. Raises Unauthenticated when what they showed has lapsed."""
    return CURRENT.get().identity()

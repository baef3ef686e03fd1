"""How the gateway is told who may call it."""

from dataclasses import dataclass
from pathlib import Path

from gateway.identity.identifier import Identifier
from gateway.identity.key_set import KeySet
from gateway.identity.keyring import Keyring
from gateway.identity.tokens import Rules, Tokens
from gateway.metrics import GatewayMetrics
from tokenwire.errors import FailedPrecondition
from tokenwire.settings import setting


@dataclass(frozen=True, kw_only=True)
class IdentitySettings:
    """What the gateway takes for it."""

    identity_file: str = setting(
        "",
        "JSON file with hashes of API keys, names in client certificates and limits of tenants, read again when it "
        "changes; `tokenwire keys` writes it",
    )
    jwt_jwks: str = setting(
        "", "public keys that tokens (JWT) are signed with: a JWKS file, or an https URL; empty: no tokens"
    )
    jwt_issuer: str = setting("", "who must have issued a token (iss)")
    jwt_audience: str = setting("", "whom a token must be for (aud)")
    jwt_leeway_s: float = setting(30.0, "how far the clocks of issuer and gateway may differ", minimum=0, maximum=600)
    jwt_tenant_claim: str = setting("tenant", "claim with the tenant; where a token lacks it, sub is the tenant")
    jwt_models_claim: str = setting("models", "claim with the list of models a caller may use; absent: all")
    jwt_priority_claim: str = setting("max_priority", "claim with the highest priority a caller may ask for; absent: 0")
    open_health: bool = setting(True, "health over gRPC, /healthz and /readyz answer callers that are not known")
    open_metrics: bool = setting(False, "/metrics and /live on the HTTP port answer callers without admin rights")

    def keyring(self) -> Keyring | None:
        """Who is in the identity file; None without one. Raises FailedPrecondition."""
        return Keyring(Path(self.identity_file)) if self.identity_file else None

    def tokens(self) -> Tokens | None:
        """What checks tokens; None where none are taken. Raises FailedPrecondition."""
        if not self.jwt_jwks:
            if self.jwt_issuer or self.jwt_audience:
                raise FailedPrecondition("--jwt-issuer and --jwt-audience need --jwt-jwks", reason="JWT_SETTINGS")
            return None
        if not (self.jwt_issuer and self.jwt_audience):
            raise FailedPrecondition("--jwt-jwks needs --jwt-issuer and --jwt-audience", reason="JWT_SETTINGS")
        claims = (self.jwt_tenant_claim, self.jwt_models_claim, self.jwt_priority_claim)
        rules = Rules(self.jwt_issuer, self.jwt_audience, self.jwt_leeway_s, *claims)
        return Tokens(KeySet(self.jwt_jwks), rules)

    def identifier(self, keyring: Keyring | None, metrics: GatewayMetrics) -> Identifier | None:
        """What asks callers who they are; None where nobody can ever be asked. Raises FailedPrecondition."""
        tokens = self.tokens()
        if tokens is None and keyring is None:
            return None
        return Identifier(keyring, tokens, metrics.identity_refused)

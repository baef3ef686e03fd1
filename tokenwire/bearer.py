"""The key of a caller as metadata of its calls, not sent to others in plaintext. Does not know what a key is."""

from tokenwire.addresses import stays_on_this_machine
from tokenwire.errors import FailedPrecondition, InvalidRequest
from tokenwire.tls import ClientTls


def bearer(api_key: str, target: str, tls: ClientTls | None, plaintext_key: bool) -> tuple[tuple[str, str], ...]:
    """The metadata that says who calls; nothing for an empty key. White space around a key is left out.

    Raises InvalidRequest, which does not show it, for a key that no header can carry, and FailedPrecondition for one
    that would leave this machine readable by anyone on the way.
    """
    if not api_key:
        return ()
    key = api_key.strip() if isinstance(api_key, str) else ""
    if not key or not all("!" <= character <= "~" for character in key):
        raise InvalidRequest.of("api_key", "is not allowed: ASCII characters that can be seen, no space among them")
    if tls is None and not plaintext_key and not stays_on_this_machine(target):
        raise FailedPrecondition(
            f"the key would go to {target} unencrypted: give tls, or plaintext_key where the way is encrypted",
            reason="KEY_IN_PLAINTEXT",
        )
    return (("authorization", f"Bearer {key}"),)

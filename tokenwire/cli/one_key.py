"""`tokenwire up --make-key`: one API key for one run, so that a port that others can reach serves nobody else.

Knows nothing of tiers: it writes an identity file for as long as the run lasts, and says where in the environment.
"""

import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import click

from tokenwire.cli.saying import forget_unwritten
from tokenwire.errors import FailedPrecondition
from tokenwire.identity_file import add_key, hash_of, new_key

KEY = "TOKENWIRE_API_KEY"
IDENTITY_FILE = "TOKENWIRE_GATEWAY_IDENTITY_FILE"
SAY_WHO_MAY_CALL = (IDENTITY_FILE, "TOKENWIRE_GATEWAY_JWT_JWKS", "TOKENWIRE_GATEWAY_TLS_CLIENT_CA")
MIN_KEY_CHARS = 20
"""Of a key that the caller chose: fewer can be guessed, and guessing is not slowed down."""


@contextmanager
def one_key(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Have the gateway ask for a key while the block runs, unless `environ` says already how callers are known.

    The key is TOKENWIRE_API_KEY's, or a new one that is printed. Both variables are set in `environ` until the block's
    end. The key may read metrics and name any tenant. Raises click.UsageError for a key that is too short, and
    FailedPrecondition where a new one cannot be printed.
    """
    if any(environ.get(name) for name in SAY_WHO_MAY_CALL):
        yield
        return
    given = environ.get(KEY, "")
    if given and len(given) < MIN_KEY_CHARS:
        raise click.UsageError(
            f"{KEY} has {len(given)} characters, and a key of fewer than {MIN_KEY_CHARS} can be guessed: take a longer "
            "one, or leave it away and one is made"
        )
    key = given or new_key()
    with tempfile.TemporaryDirectory(prefix="tokenwire-") as folder:
        path = Path(folder) / "identities.json"
        add_key(path, {"name": "up", "sha256": hash_of(key), "tenant": "*", "admin": True})
        environ[IDENTITY_FILE], environ[KEY] = str(path), key
        try:
            if not given:
                _show(key)
            yield
        finally:
            del environ[IDENTITY_FILE]
            if not given:
                del environ[KEY]


def _show(key: str) -> None:
    try:
        click.echo(f"Callers need this key, which holds until the end of this run ({KEY} would name another):\n  {key}")
    except OSError as error:
        forget_unwritten()
        message = f"the new key cannot be printed ({error.strerror}), and nobody would know it: give one in {KEY}"
        raise FailedPrecondition(message, reason="KEY_NOT_SHOWN") from error

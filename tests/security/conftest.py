from tests.gateway.conftest import no_long_wait_for_tiers_that_are_not_there
from tests.gateway.identity.conftest import callers, files_are_looked_at_at_once, issuer
from tests.tokenizer_svc.conftest import trained_folder

__all__ = [
    "callers",
    "files_are_looked_at_at_once",
    "issuer",
    "no_long_wait_for_tiers_that_are_not_there",
    "trained_folder",
]

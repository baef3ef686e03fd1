from tests.gateway.identity.conftest import callers, files_are_looked_at_at_once, issuer

__all__ = ["callers", "files_are_looked_at_at_once", "issuer"]

"""The real stack for other people's clients: that of tests/e2e."""

from tests.e2e.conftest import model_folder, stack

__all__ = ["model_folder", "stack"]

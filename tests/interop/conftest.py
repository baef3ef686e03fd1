"""The real stack for other people's clients: that of tests/e2e."""

from tests.e2e.conftest import model_folder, reference, stack

__all__ = ["model_folder", "reference", "stack"]

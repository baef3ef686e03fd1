from tests.tokenizer_svc.conftest import trained_folder

__all__ = ["trained_folder"]

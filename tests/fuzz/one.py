"""Fuzz one target until its time is over: `python -m tests.fuzz.one TARGET [libFuzzer's arguments]`."""

import sys

import atheris

OURS = ["tokenwire", "tokenizer_svc", "model_svc", "gateway"]


def main() -> None:
    with atheris.instrument_imports(include=OURS):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415  what is imported here is watched

    name = sys.argv.pop(1)
    with TARGETS[name]() as take:
        atheris.Setup(sys.argv, take)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

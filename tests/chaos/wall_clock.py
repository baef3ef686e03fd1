"""The wall clock of a process, which a test may set: Debian's libfaketime beneath it. The monotonic clock is let be."""

from pathlib import Path

from tests.interop.environments import not_to_be_had

LIBRARIES = "*/faketime/libfaketimeMT.so.1"


class WallClock:
    """The clock of every process that is started with `environ`. Skips the test where libfaketime is not installed."""

    def __init__(self, file: Path) -> None:
        """`file`: says how wrong the clock is."""
        libraries = sorted(Path("/usr/lib").glob(LIBRARIES))
        if not libraries:
            not_to_be_had("libfaketime is not installed (Debian: faketime)")
        self._file = file
        self.set(0)
        self.environ = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, ahead_s: int) -> None:
        """Jump to so many seconds before the right time; below 0: behind it."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}")
        new.rename(self._file)

"""What is kept of a long run, and when the growth of its memory is judged."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.soak_record import MOST_MB_PER_H, Sample, SampleFile, growths


def sample(at_s: float, rss_mb: float) -> Sample:
    return Sample(at_s, "gateway 4", rss_mb, descriptors=9, threads=3, open_requests=1.0, kv_used_blocks=0.0,
                  p50_ms=1.0, p99_ms=2.0, num_served=5)  # fmt: skip


def samples(minutes: int, rss_mb: Callable[[float], float]) -> list[Sample]:
    """One a minute; `rss_mb` by hours."""
    return [sample(60.0 * minute, rss_mb(minute / 60)) for minute in range(minutes + 1)]


def test_every_sample_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "soak.csv"
    with pytest.raises(OSError, match="the tier is gone"), SampleFile(path) as file:
        for number in range(3):
            file.add(sample(float(number), 50.0))
            assert len(path.read_text().splitlines()) == 2 + number
        raise OSError("the tier is gone")
    assert [row["at_s"] for row in csv.DictReader(path.read_text().splitlines())] == ["0.0", "1.0", "2.0"]


def test_memory_that_grows_while_it_is_warmed_up_is_not_judged() -> None:
    (growth,) = growths(samples(120, lambda hours: min(300.0, 100 + 400 * hours)), warm_s=1800)
    assert growth.judged and not growth.too_fast and growth.mb_per_h == pytest.approx(0)


@pytest.mark.parametrize(("mb_per_h", "too_fast"), [(MOST_MB_PER_H - 1, False), (MOST_MB_PER_H + 1, True)])
def test_memory_that_grows_for_an_hour_is(mb_per_h: float, too_fast: bool) -> None:
    (growth,) = growths(samples(90, lambda hours: 100 + mb_per_h * hours), warm_s=1800)
    assert growth.judged and growth.too_fast is too_fast and "not judged" not in str(growth)


def test_what_may_be_more_is_too_fast() -> None:
    (growth,) = growths(samples(60, lambda hours: 100 + 50 * (round(60 * hours) % 7 == 0)), warm_s=0)
    assert abs(growth.mb_per_h) < MOST_MB_PER_H < growth.mb_per_h + growth.half_width
    assert growth.too_fast


def test_a_run_that_is_too_short_for_it_only_shows_its_slope() -> None:
    (growth,) = growths(samples(80, lambda hours: 100 + 500 * hours), warm_s=1500)
    assert not growth.judged and not growth.too_fast
    assert str(growth).startswith("gateway 4: 308 to 767 MB, +500.0 ± 0.0 MB/h (not judged: less than 60 minutes")

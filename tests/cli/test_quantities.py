import time

import pytest

from tfx_cli.quantities import ago, date, duration, metric_value, short_count


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (50_440, "50.4k"), (85_054_464, "85.1M"), (-2500, "-2.5k"),
     (999_900, "1M"), (3e15, "3e+03T")],
)  # fmt: skip
def test_counts_are_told_in_three_digits(value, text):
    assert short_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (12.4, "12 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (5400, "1.5 h"),
     (86400, "24.0 h"), (2 * 86400, "2.0 d")],
)  # fmt: skip
def test_times_are_told_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_a_moment_is_told_in_local_time_or_as_how_long_ago():
    assert ago(100.0, now=112.0) == "12 s ago"
    assert ago(None, now=1.0) == ""
    moment = time.mktime((2026, 1, 31, 12, 0, 5, 0, 0, -1))
    assert date(moment) == "2026-01-31 12:00:05"
    assert (date(None), date(1e300)) == ("", "")


def test_metrics_are_told_in_their_own_format():
    assert metric_value("loss", 1.23456) == "1.2346"
    assert metric_value("cells_per_second", 12345.6) == "12,346"
    assert metric_value("wait", 0.0123) == "1.2%"
    assert metric_value("acc/sex", 0.5) == "0.500"
    assert metric_value("new", 123456.0) == "1.235e+05"
    assert metric_value("loss", None) == ""
    assert metric_value("loss", "odd") == "odd"

"""The scenes with keepalived: what they cover and how they judge; ``make interop`` plays them."""

from pathlib import Path

from tests.interop.vrrp import Settled, Timing, cases, show
from tests.interop.vrrp_lab import Case, router

ROOT = Path(__file__).parents[2]


def test_every_combination_is_played() -> None:
    alone = [case.routers[0] for case in cases() if len(case.routers) == 1]
    played = {(one.version, one.family, one.unicast) for one in alone}
    assert played == {
        (version, family, unicast)
        for version, family in ((2, 4), (3, 4), (3, 6))
        for unicast in (False, True)
    }
    for unicast in (False, True):
        conventions = {one.checksum for one in alone if one.unicast is unicast}
        assert conventions >= {"auto", "keepalived"}
    (several,) = [case for case in cases() if len(case.routers) > 1]
    assert len(set(several.addresses)) == len(several.addresses)


def test_the_times_are_those_of_the_rfc() -> None:
    assert Timing(2, 2).down(100) == 6 + 156 / 256
    assert Timing(3, 0.5).down(100) == 1.5 + 0.5 * 156 / 256
    assert Timing(3, 0.5).skew(200) == 0.5 * 56 / 256


def test_the_table_has_a_row_for_each_scene_and_tells_failures_apart() -> None:
    lines: list[str] = []
    case = Case((router(2, 4, unicast=True),))
    scenes = [Settled("K alone", 3.42, 3.41), Settled("L joins", 0.0, 0.0)]
    show([(case, scenes), (case, "it did not settle")], lines.append)
    assert lines[0] == "(1) v2 IPv4 unicast"
    assert lines[-2].split() == ["K", "alone", "3.42", "/", "3.41"]
    assert lines[-1].split() == ["L", "joins", "-"]

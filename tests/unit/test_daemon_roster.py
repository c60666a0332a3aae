import errno

import pytest

from lvsha.errors import AdministrationError
from lvsha.sync.ipvs.roster import Role, Roster, Terms

WIDE_GROUP = bytes((0xFF, 2, *bytes(13), 0x81))


def roster() -> Roster:
    return Roster({"sync0": 1500, "jumbo0": 9000, "tiny0": 576}.get)


def refusal(of: Roster, role: Role, terms: Terms | None) -> int:
    with pytest.raises(AdministrationError) as caught:
        of.stop(role) if terms is None else of.start(role, terms)
    return caught.value.code


def test_one_daemon_of_each_role_runs() -> None:
    one = roster()
    assert one.running() == []
    backup = one.start(Role.BACKUP, Terms("sync0", 7))
    master = one.start(Role.MASTER, Terms("sync0", 5))
    assert one.running() == [master, backup]
    assert refusal(one, Role.MASTER, Terms("sync0", 6)) == errno.EEXIST
    assert one.stop(Role.MASTER) == master
    assert one.running() == [backup]
    assert refusal(one, Role.MASTER, None) == errno.ESRCH
    one.start(Role.MASTER, Terms("sync0", 6))


def test_terms_that_no_daemon_can_have_are_refused() -> None:
    one = roster()
    assert refusal(one, Role.MASTER, Terms("none0", 5)) == errno.ENODEV
    assert refusal(one, Role.MASTER, Terms("sync0", 256)) == errno.EINVAL
    assert refusal(one, Role.MASTER, Terms("sync0", 5, group=bytes((10, 0, 0, 1)))) == errno.EINVAL
    assert refusal(one, Role.MASTER, Terms("sync0", 5, group=bytes(16))) == errno.EINVAL
    one.start(Role.MASTER, Terms("sync0", 5))
    # The kernel looks for the interface before it looks for a daemon.
    assert refusal(one, Role.MASTER, Terms("none0", 5)) == errno.ENODEV


@pytest.mark.parametrize(
    ("role", "terms", "length"),
    [
        (Role.MASTER, Terms("sync0", 5), 1472),
        (Role.MASTER, Terms("jumbo0", 5), 1472),
        (Role.MASTER, Terms("sync0", 5, group=WIDE_GROUP), 1452),
        (Role.MASTER, Terms("sync0", 5, 1), 1),
        (Role.MASTER, Terms("sync0", 5, 65_535), 65_507),
        (Role.BACKUP, Terms("sync0", 5), 1472),
        (Role.BACKUP, Terms("jumbo0", 5), 8972),
        (Role.BACKUP, Terms("jumbo0", 5, group=WIDE_GROUP), 8952),
        (Role.BACKUP, Terms("tiny0", 5), 1472),
        (Role.BACKUP, Terms("sync0", 5, 1), 1024),
        (Role.BACKUP, Terms("sync0", 5, 65_535, WIDE_GROUP), 65_487),
    ],
)
def test_the_length_of_messages_is_the_kernels(role: Role, terms: Terms, length: int) -> None:
    assert roster().start(role, terms).length_max == length


def test_what_the_pair_file_asks_for_is_not_for_commands() -> None:
    one = roster()
    terms = Terms("later0", 5)
    configured = one.configure([(Role.BACKUP, terms), (Role.MASTER, terms), (Role.MASTER, terms)])
    assert [daemon.role for daemon in configured] == [Role.BACKUP, Role.MASTER, Role.MASTER]
    assert [daemon.role for daemon in one.running()] == [Role.MASTER, Role.MASTER, Role.BACKUP]
    assert refusal(one, Role.MASTER, Terms("sync0", 6)) == errno.EOPNOTSUPP
    assert refusal(one, Role.MASTER, None) == errno.EOPNOTSUPP

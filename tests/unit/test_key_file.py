import base64
import os
import stat
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from lvsha.errors import ConfigError, HostError
from lvsha.sync import key_file
from lvsha.sync.key_file import KeyFile, Ring, Use, create, finish, load_keys, load_ring, rotate
from lvsha.sync.seal import Seal, key_id

ONE, TWO, THREE = (bytes((number,)) * 32 for number in (1, 2, 3))
PLAIN = b"\x01\x07\xff\xff\x90"


def line(use: str, key: bytes = ONE) -> str:
    return f"lvsha-key-1 {use} {base64.b64encode(key).decode()}"


def written(path: Path, *lines: str, mode: int = 0o600) -> Path:
    path.write_text("".join(f"{text}\n" for text in lines))
    path.chmod(mode)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sync.key"


# Reading


def test_one_key_is_read(path: Path) -> None:
    assert load_keys(written(path, line("current"))) == (ONE,)


@pytest.mark.parametrize("use", ["next", "previous"])
def test_the_current_key_comes_first_wherever_it_stands(path: Path, use: str) -> None:
    lines = [line("current", ONE), line(use, TWO)]
    assert load_keys(written(path, *lines)) == (ONE, TWO)
    assert load_keys(written(path, *reversed(lines))) == (ONE, TWO)


def test_comments_and_empty_lines_are_for_people(path: Path) -> None:
    text = ["# Schlüssel", "", "   ", "  # more", "  " + line("current") + " \r"]
    assert load_keys(written(path, *text)) == (ONE,)


@pytest.mark.parametrize(
    ("lines", "where", "expected"),
    [
        ([], "", "expected a line with a key that is current"),
        (["# nothing"], "", "expected a line with a key that is current"),
        ([line("next")], "", "expected a line with a key that is current"),
        ([line("current"), "nonsense"], "line 2: ", "expected lvsha-key-1, "),
        ([line("current") + " more"], "line 1: ", "expected lvsha-key-1, "),
        ([line("current").replace("-1", "-2")], "line 1: ", "expected lvsha-key-1, "),
        (["# one", line("first")], "line 2: ", "expected one of current, next, previous"),
        ([line("current", ONE[:-1])], "line 1: ", "expected 32 bytes in base64"),
        ([line("current", ONE + b"\x00")], "line 1: ", "expected 32 bytes in base64"),
        ([line("current") + "!"], "line 1: ", "expected 32 bytes in base64"),
        ([line("current")[:-1]], "line 1: ", "expected 32 bytes in base64"),
        (["lvsha-key-1 current schlüssel"], "line 1: ", "expected 32 bytes in base64"),
        ([line("current"), line("current", TWO)], "line 2: ", "expected only one key that is"),
        ([line("current"), line("next")], "line 2: ", "expected another key than in a line"),
        (
            [line("current"), line("next", TWO), line("previous", THREE)],
            "line 3: ",
            "expected at most 2 keys",
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_line(
    path: Path, lines: list[str], where: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_keys(written(path, *lines))
    assert str(caught.value).startswith(f"{path}: {where}{expected}")
    assert "AQEB" not in str(caught.value), "a key is in the message"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_file_that_others_may_open_is_refused_with_the_remedy(path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=rf"run: chmod 600 {path}$"):
        load_keys(written(path, line("current"), mode=mode))
    assert load_keys(written(path, line("current"), mode=0o400)) == (ONE,)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for wrong in (tmp_path, pipe, Path("/dev/null")):
        with pytest.raises(ConfigError, match=f"{wrong}: expected a regular file"):
            load_keys(wrong)


def test_a_link_to_a_key_file_is_followed(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written(path, line("current")))
    assert load_keys(link) == (ONE,)


def test_a_file_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{path}: cannot be read: No such file"):
        load_keys(path)


def test_a_file_that_cannot_be_one_of_keys_is_not_read_to_its_end(path: Path) -> None:
    written(path, line("current"), "#" * 5000)
    with pytest.raises(ConfigError, match="expected at most 4096 bytes"):
        load_keys(path)


# Writing


def test_a_new_file_has_one_key_and_is_its_owners_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        ring = create(path)
    finally:
        os.umask(before)
    assert list(ring) == [Use.CURRENT]
    assert load_ring(path) == ring
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_new_files_have_different_keys(tmp_path: Path) -> None:
    assert create(tmp_path / "one") != create(tmp_path / "other")


def test_a_file_that_is_there_is_not_overwritten(path: Path) -> None:
    ring = create(path)
    with pytest.raises(ConfigError, match=r"is there already; .* keygen --rotate"):
        create(path)
    assert load_ring(path) == ring


def test_a_rotation_has_three_steps(path: Path) -> None:
    old = create(path)[Use.CURRENT]
    ring = rotate(path)
    new = ring[Use.NEXT]
    assert key_id(new) != key_id(old)
    assert ring == load_ring(path) == {Use.CURRENT: old, Use.NEXT: new}
    assert rotate(path) == load_ring(path) == {Use.CURRENT: new, Use.PREVIOUS: old}
    assert finish(path) == load_ring(path) == {Use.CURRENT: new}


def test_no_step_is_skipped_or_taken_twice(path: Path) -> None:
    def refused(step: Callable[[Path], Ring], expected: str) -> None:
        before = path.read_bytes()
        with pytest.raises(ConfigError, match=expected):
            step(path)
        assert path.read_bytes() == before

    create(path)
    refused(finish, "there is no rotation to finish")
    rotate(path)
    refused(finish, "does not seal yet; first: lvsha keygen --rotate")
    rotate(path)
    refused(rotate, "end that rotation first: lvsha keygen --finish")


def test_at_each_step_a_node_accepts_what_the_other_seals_with(path: Path) -> None:
    create(path)
    files = [load_keys(path)]
    for step in (rotate, rotate, finish, rotate, rotate, finish):
        step(path)
        files.append(load_keys(path))
    for before, after in pairwise(files):
        ahead, behind = Seal(after, 1), Seal(before, 2)
        assert behind.open(ahead.seal(PLAIN)) == PLAIN
        assert ahead.open(behind.seal(PLAIN)) == PLAIN
    assert len({keys[0] for keys in files}) == 3


def test_a_rotation_replaces_the_file_and_leaves_nothing_else(path: Path, tmp_path: Path) -> None:
    create(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with path.open("rb") as opened:
        rotate(link)
        # Who has the old file open still reads the old file.
        assert b"next" not in opened.read()
    assert link.is_symlink()
    assert Use.NEXT in load_ring(path)
    assert sorted(tmp_path.iterdir()) == [link, path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_rotation_keeps_the_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    create(path)
    monkeypatch.setattr(os, "fchown", lambda _file, user, group: given.append((user, group)))
    rotate(path)
    assert given == [(path.stat().st_uid, path.stat().st_gid)]


def test_a_file_that_cannot_be_written_is_as_before(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HostError, match="cannot be written: No such file"):
        create(tmp_path / "none" / "sync.key")
    ring = create(path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match=f"{path}: cannot be written: No space left on device"):
        rotate(path)
    assert load_ring(path) == ring
    assert list(tmp_path.iterdir()) == [path]


# Watching


def test_a_change_is_told_once(path: Path) -> None:
    (old,) = create(path).values()
    watched = KeyFile(path)
    assert watched.load() == (old,)
    assert watched.changed() is None
    new = rotate(path)[Use.NEXT]
    assert watched.changed() == (old, new)
    assert watched.changed() is None
    rotate(path)
    assert watched.changed() == (new, old)
    finish(path)
    assert watched.changed() == (new,)
    assert watched.changed() is None


def test_a_file_that_is_only_touched_is_no_change(path: Path) -> None:
    create(path)
    watched = KeyFile(path)
    watched.load()
    os.utime(path, ns=(1, 1))
    assert watched.changed() is None


def test_an_untouched_file_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(path)
    watched = KeyFile(path)
    watched.load()
    monkeypatch.setattr(key_file, "load_keys", lambda _path: pytest.fail("it was read"))
    assert watched.changed() is None


@pytest.mark.parametrize("damage", ["gone", "wrong", "open to others"])
def test_a_wrong_file_is_told_of_until_it_is_mended(path: Path, damage: str) -> None:
    (old,) = create(path).values()
    watched = KeyFile(path)
    watched.load()
    match damage:
        case "gone":
            path.rename(path.with_suffix(".away"))
        case "wrong":
            written(path, "nonsense")
        case _:
            path.chmod(0o644)
    for _ in range(2):
        with pytest.raises(ConfigError):
            watched.changed()
    written(path, line("current", old))
    assert watched.changed() is None
    written(path, line("current", TWO), line("previous", old))
    assert watched.changed() == (TWO, old)


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = create(path).values()
    watched = KeyFile(path)

    def load_and_rotate(read: Path) -> tuple[bytes, ...]:
        keys = load_keys(read)
        rotate(read)
        return keys

    with monkeypatch.context() as patch:
        patch.setattr(key_file, "load_keys", load_and_rotate)
        assert watched.load() == (old,)
    assert watched.changed() == tuple(load_ring(path).values())

"""A file that a crash leaves whole, on the real file system."""

import stat
from pathlib import Path

import pytest
import trio

from lvsha.errors import HostError
from lvsha.state_file import StateFile

SIZE_MAX = 1000


def put(path: Path, data: bytes) -> None:
    async def run() -> None:
        draft = StateFile(path).draft()
        await draft.write(data)
        await draft.finish()
        draft.close()

    trio.run(run)


def get(path: Path) -> bytes | None:
    return trio.run(StateFile(path).read, SIZE_MAX)


def test_what_is_finished_is_read_and_only_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    assert get(path) is None
    put(path, b"one")
    put(path, b"two")
    assert get(path) == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["connections"]


def test_what_is_not_finished_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    put(path, b"old")

    async def give_up() -> None:
        draft = StateFile(path).draft()
        await draft.write(b"new")
        draft.close()

    trio.run(give_up)
    assert get(path) == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["connections"]


def test_what_a_crash_has_left_beside_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    (tmp_path / "connections.new").write_bytes(b"torn")
    put(path, b"whole")
    assert get(path) == b"whole"
    assert [one.name for one in tmp_path.iterdir()] == ["connections"]


def test_a_file_is_set_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    for content in (b"one", b"two"):
        put(path, content)
        assert trio.run(StateFile(path).set_aside) == f"{path}.refused"
    assert get(path) is None
    assert Path(f"{path}.refused").read_bytes() == b"two"


def test_what_cannot_be_is_an_error_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    put(path, b"x" * (SIZE_MAX + 1))
    with pytest.raises(HostError, match="larger than 1000 bytes"):
        get(path)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(HostError, match="cannot be read"):
        get(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(HostError, match="cannot be read"):
        get(path)
    with pytest.raises(HostError, match="cannot be written"):
        put(tmp_path / "missing" / "connections", b"x")
    with pytest.raises(HostError, match="cannot be renamed"):
        trio.run(StateFile(tmp_path / "nothing").set_aside)

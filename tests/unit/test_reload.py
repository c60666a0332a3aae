"""What SIGHUP says of a pair file."""

from pathlib import Path

from lvsha.config import load_pair
from lvsha.reload import compare

PAIR = """
[nodes.east]
interfaces = { outside = "eth0" }

[[services]]
name = "http"
address = "192.0.2.10"
port = 80
servers = [{ address = "10.1.0.11" }]
"""


def test_the_answer_names_what_a_restart_would_change(tmp_path: Path) -> None:
    file = tmp_path / "pair.toml"
    file.write_text(PAIR)
    running = load_pair(file)
    assert compare(running, file) == "running; the pair file has not changed"
    file.write_text(PAIR.replace("port = 80", "port = 81") + "\n[limits]\nconnections = 5\n")
    assert compare(running, file) == "running; a restart would change limits, services.http"
    file.write_text(PAIR.replace("port = 80", 'port = "many"'))
    assert "wrong" in compare(running, file)
    file.unlink()
    assert "wrong" in compare(running, file)

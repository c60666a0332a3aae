"""What a person and a program are told of a drill."""

import io
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from rich.console import Console

from lvsha.drill import page, report
from lvsha.drill.drawing import draw
from lvsha.drill.options import DrillOptions
from lvsha.drill.recording import (
    RESET,
    Act,
    Datagram,
    Load,
    LongConnection,
    Recording,
    ShortConnection,
    StateSeen,
    SyncFrames,
)
from lvsha.drill.timeline import judge

OPTIONS = DrillOptions(directory=Path("/somewhere"))


def make_recording(*, broken: bool) -> Recording:
    """A drill of 24 s: a crash at 8 s with 400 ms of silence, a return at 14 s."""
    dice = random.Random(3)
    names = ("real-1", "real-2", "real-3")
    long = tuple(
        LongConnection(
            "stream" if number < 40 else "idle",
            3.0,
            names[number % 3],
            200,
            ((8.0 + dice.random() * 0.1, 8.45 + dice.random() * 0.4),) if number < 40 else (),
            8.5 if broken and number in {3, 50} else None,
            RESET if broken and number in {3, 50} else "",
        )
        for number in range(80)
    )
    starts = [4 + number * 0.05 for number in range(330)]
    short = []
    for number, start in enumerate(starts):
        established = 9.0 + dice.random() * 0.1 if 8 <= start < 8.4 else start + 0.004
        lost = broken and number == 75
        short.append(
            ShortConnection(
                start,
                established,
                established + 1 + dice.random(),
                names[number % 3],
                RESET if lost else "",
            )
        )
    probe = []
    for number in range(3400):
        sent = 3.0 + number * 0.005
        silent = 8.0 <= sent < 8.4
        probe.append(Datagram(sent, None if silent else sent + 0.001, "" if silent else "real-1"))
    states = (
        StateSeen(1.0, "east", "BACKUP"),
        StateSeen(1.1, "west", "BACKUP"),
        StateSeen(1.5, "east", "MASTER"),
        StateSeen(8.0, "east", "DOWN"),
        StateSeen(8.36, "west", "MASTER"),
        StateSeen(14.7, "east", "BACKUP"),
        StateSeen(15.9, "east", "MASTER"),
        StateSeen(15.95, "west", "BACKUP"),
    )
    acts = (Act("crash", "east", "west", 8.0, 13.5), Act("return", "east", "east", 14.0, 19.5))
    return Recording(acts, states, Load(long, tuple(short), tuple(probe), 0.003), 0.0, 21.0)


def test_table_names_every_kind_and_the_verdict() -> None:
    console = Console(width=140, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    with console.file:
        console.print(report.render(judge(make_recording(broken=True)), OPTIONS))
        text = console.export_text()
    for expected in (
        "Crash: east was killed",
        "Return: east",
        "streams",
        "idle",
        "young",
        "14/13/13",
        "FAILED: 3 established connections lost",
        "1 reset",
        "401 ms" if "401 ms" in text else "405 ms",
        "/somewhere/report.html",
    ):
        assert expected in text


def test_json_holds_every_figure_and_can_be_read_again() -> None:
    recording = make_recording(broken=False)
    content = json.loads(json.dumps(report.to_json(judge(recording), recording, OPTIONS)))
    assert content["passed"] is True
    assert content["options"]["method"] == "nat"
    crash, back = content["acts"]
    assert crash["name"] == "crash"
    assert crash["at"] == 8.0
    assert 400 <= crash["outage_ms"] <= 410
    assert crash["connections"]["streams"]["kept"] == 40
    assert crash["connections"]["streams"]["kept_server"] is True
    assert crash["takeover_ms"] == 360
    assert back["outage_ms"] < 10


def test_of_two_virtual_routers_each_is_named() -> None:
    recording = make_recording(broken=False)
    states = recording.states + tuple(
        StateSeen(seen.at, "west" if seen.node == "east" else "east", seen.state, "mail")
        for seen in recording.states
    )
    acts = (*recording.acts, Act("crash", "west", "east", 14.2, 19.0, "mail"))
    both = replace(recording, states=states, acts=acts)
    verdict = judge(both)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.render(verdict, OPTIONS))
    text = console.export_text()
    assert "east is MASTER " in text
    assert "east is MASTER of mail" in text
    content = json.loads(json.dumps(report.to_json(verdict, both, OPTIONS)))
    assert [act["router"] for act in content["acts"]] == ["web", "web", "mail"]
    assert {(seen["node"], seen["router"]) for seen in content["states"]} == {
        ("east", "web"),
        ("east", "mail"),
        ("west", "web"),
        ("west", "mail"),
    }
    drawn = page.render(verdict, both, OPTIONS, "")
    for lane in ("east, web", "east, mail", "west, web", "west, mail"):
        assert f">{lane}</text>" in drawn
        assert f"{lane}: MASTER" in drawn
    assert ">east, web<" not in page.render(judge(recording), recording, OPTIONS, "")


def test_loss_on_the_sync_network_is_told_everywhere() -> None:
    lossy = replace(OPTIONS, sync_loss=20)
    recording = replace(make_recording(broken=False), sync_frames=SyncFrames(500, 103))
    verdict = judge(recording)
    expected = "The sync network dropped 103 of 500 frames; 20 % were asked for."
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.render(verdict, lossy))
    assert expected in console.export_text()
    assert expected in page.render(verdict, recording, lossy, "")
    content = json.loads(json.dumps(report.to_json(verdict, recording, lossy)))
    assert content["options"]["sync_loss"] == 20
    assert content["sync_frames"] == {"seen": 500, "dropped": 103}


def test_a_sync_network_that_drops_nothing_is_not_spoken_of() -> None:
    recording = make_recording(broken=False)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.render(judge(recording), OPTIONS))
    assert "sync network" not in console.export_text()
    assert "sync network" not in page.render(judge(recording), recording, OPTIONS, "")


class Reader(HTMLParser):
    """Checks that what opens is closed, in order."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_one_whole_file_without_scripts_or_anything_to_fetch() -> None:
    recording = make_recording(broken=True)
    text = page.render(judge(recording), recording, OPTIONS, "name = '<script>'\n")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.seen.count("svg") == 3
    assert "script" not in reader.seen
    assert not re.search(r"(src|href)=|@import|url\(|https?:", text)
    assert "name = &#x27;&lt;script&gt;&#x27;" in text
    assert "failed: 3 established connections lost" in text


def test_drawing_stays_within_its_chart() -> None:
    recording = make_recording(broken=True)
    drawing = draw(recording, 7.5, 9.5, [(8.0, 8.4)])
    positions = [float(number) for number in re.findall(r"[MH](-?\d+\.\d)", drawing)]
    assert positions
    assert min(positions) >= 0
    assert max(positions) <= 1000


def test_page_of_a_drill_without_load_can_be_drawn() -> None:
    empty = Recording((), (), Load((), (), (), 0.0), 0.0, 1.0)
    assert "nothing was rehearsed" in page.render(judge(empty), empty, OPTIONS, "")

"""The part of a pair file about what is asked beside the advertisements.

Times are seconds.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from lvsha.config_fields import Name, Table
from lvsha.config_tracking import Command, Tracker, User


class FencingTable(Table):
    """A program that makes sure that a peer is dead, before its addresses are taken.

    It gets three words behind its own arguments: the peer, the virtual router, the reason.
    ``on_failure`` is for a program that ends with another code than 0, or not in time.
    """

    command: Command
    user: User | None = None
    timeout: Annotated[float, Field(ge=0.1, le=600)] = 30.0
    on_failure: Literal["stay", "take_over"] = "stay"


class SecondPathTable(Table):
    """Who is asked before a node takes over from a master that it does not hear.

    ``witness`` is a tracker. ``master_heard`` is for a master that is still heard on the sync
    link, where no witness says which of the nodes is cut off.
    """

    witness: Name | None = None
    master_heard: Literal["stay", "take_over"] = "stay"
    fencing: FencingTable | None = None


def check_second_path(
    table: SecondPathTable, trackers: Sequence[Tracker], *, heard: bool
) -> Iterator[str]:
    """Mistakes that only show when the rest of the file is seen.

    Args:
        table: the section.
        trackers: of the file.
        heard: whether the nodes hear each other on a sync link.
    """
    witness = next((one for one in trackers if one.name == table.witness), None)
    if table.witness is not None and witness is None:
        yield f"second_path.witness: expected the name of a tracker, not {table.witness!r}"
    if witness is not None and witness.numeric:
        yield (
            "second_path.witness: expected a tracker that is up or down; "
            f'{witness.name!r} reports a number (content = "existence" does not)'
        )
    if heard:
        return
    if "master_heard" in table.model_fields_set:
        yield "second_path.master_heard: expected only with a [sync] in lvsha's format"
    if table.witness is None and table.fencing is None:
        yield (
            "second_path: expected a [sync] in lvsha's format, a witness or fencing; "
            "without any of them there is nobody to ask"
        )

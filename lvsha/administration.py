"""What an operator may change of a running director, behind the control socket.

The handlers here take JSON that came from the ``lvsha`` or the ``ipvsadm`` command, carry it
out between two frames, and give JSON back. They never wait. What they refuse they raise as
an `LvshaError`, which the control socket tells to who asked.
"""

from collections.abc import Callable, Mapping

from lvsha.control import WithArguments
from lvsha.datapath.director import Director
from lvsha.errors import ConfigError, WireError
from lvsha.ipvsadm.commands import Daemons, NoDaemons, run
from lvsha.ipvsadm.exchange import Answer, Request
from lvsha.settings import NAMES


class Administration:
    """The commands of the control socket that change a director.

    Args:
        director: which one.
        clock: its time.
        on_change: called after a command that may have changed something.
        daemons: the sync daemons; by default there are none.
    """

    def __init__(
        self,
        director: Director,
        clock: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
        daemons: Daemons | None = None,
    ) -> None:
        self._director = director
        self._clock = clock
        self._on_change = on_change
        self._daemons = daemons or NoDaemons()

    def commands(self) -> dict[str, WithArguments]:
        """The handlers, by the name of the command."""
        return {
            "ipvsadm": WithArguments(self.ipvsadm),
            "settings": WithArguments(self.settings),
        }

    def ipvsadm(self, arguments: Mapping[str, object]) -> object:
        """Carry out a command line of ipvsadm.

        Raises:
            WireError: the arguments make no sense.
        """
        request = Request.parse(arguments)
        names = request.names()
        result = run(
            request.words,
            request.stdin,
            self._director,
            names,
            self._clock(),
            self._daemons,
            following=request.following,
        )
        self._on_change()
        return Answer.make(result, names).model_dump(mode="json")

    def settings(self, arguments: Mapping[str, object]) -> object:
        """Change the settings in ``set``, and tell those in ``get`` (all, if neither is there).

        Raises:
            ConfigError: there is no such setting, or it cannot have that value.
            WireError: the arguments make no sense.
        """
        changes, asked = arguments.get("set", {}), arguments.get("get", [])
        if not isinstance(changes, dict) or not isinstance(asked, list):
            raise WireError("settings: expected an object 'set' or a list 'get'")
        names = [str(name) for name in asked]
        for name in names:
            if name not in NAMES:
                raise ConfigError(f"{name}: no such setting; there are {', '.join(NAMES)}")
        settings = self._director.settings
        if changes:
            settings = settings.changed({str(name): str(changes[name]) for name in changes})
            self._director.configure(settings)
            self._on_change()
        return {name: settings.text(name) for name in names or ([] if changes else NAMES)}

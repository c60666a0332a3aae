"""The settings of a director that may change while it runs.

They are the kernel's ``net.ipv4.vs.*``, with the same names, defaults and ranges. `Settings`
is a value: `changed` makes a new one, which the director puts into force at once.

Settings that say how a kernel carries out its work, and that mean nothing to a program that
is not the kernel, are accepted so that a site's list can be taken over as it is;
`WITHOUT_EFFECT` names each with the reason. Those of the sync daemons are held here and read
by the sync.

Times are seconds, memory is pages.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lvsha.errors import ConfigError

MODE_OFF: Final = 0
MODE_AUTOMATIC: Final = 1
MODE_AUTOMATIC_ON: Final = 2
"""Automatic, and memory is low now; the director itself goes between this and the former."""
MODE_ALWAYS: Final = 3

REUSE_CLOSED: Final = 1
REUSE_FIN_WAIT: Final = 2
"""Bits of `Settings.conn_reuse_mode`."""

_INT_MAX: Final = 2**31 - 1

Mode = Annotated[int, Field(ge=MODE_OFF, le=MODE_ALWAYS)]
Number = Annotated[int, Field(ge=0, le=_INT_MAX)]


def _pair(value: object) -> object:
    """Accept the form in which a sysctl is written: two numbers with a blank between."""
    return value.split() if isinstance(value, str) else value


class Settings(BaseModel):
    """All settings, with the kernel's names and defaults.

    Attributes:
        amemthresh: below so many free pages memory counts as low.
        am_droprate: ``drop_packet`` 3 drops one new connection of so many.
        drop_entry: 0 to 3: whether old and half-open connections are dropped at random.
        drop_packet: 0 to 3: whether packets that would open a connection are dropped.
        secure_tcp: 0 to 3: whether the stricter table of TCP states is used.
        sync_version: of the messages that a master daemon of the kernel's protocol sends;
            both are understood.
        sync_ports: how many UDP ports, and so sockets, each such daemon has; it counts when
            the first of them is started.
        sync_qlen_max: so many full messages of a port may wait for the socket, more are lost;
            0 is 8192, the kernel's own number with 1 GiB of memory.
        sync_sock_size: bytes of the socket's buffer; 0 is 1 MiB to send and 4 MiB to receive.
        cache_bypass: forward what finds no real server of a firewall-mark service to where
            it was going.
        expire_nodest_conn: end connections of removed real servers, instead of dropping
            their packets until they expire.
        sloppy_tcp, sloppy_sctp: any packet but a reset or abort may open a connection.
        expire_quiescent_template: forget the template of a client whose server has weight 0.
        nat_icmp_send: answer a NAT real server's packet of no connection with "port
            unreachable".
        pmtu_disc: tunnel packets carry DF as the packet inside does.
        backup_only: as a backup, forward nothing.
        conn_reuse_mode: bits: 1, a new connection may take the ports of one that is closed;
            2, also of one in FIN_WAIT whose replies pass elsewhere.
        schedule_icmp: an ICMP error about an unknown connection opens one.
        run_estimation: compute rates.
        lblc_expiration, lblcr_expiration: seconds until an unused entry of these schedulers'
            tables, or a member of a set, is removed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    amemthresh: Number = 1024
    am_droprate: Number = 10
    drop_entry: Mode = MODE_OFF
    drop_packet: Mode = MODE_OFF
    conntrack: bool = False
    secure_tcp: Mode = MODE_OFF
    snat_reroute: bool = True
    sync_version: Annotated[int, Field(ge=0, le=1)] = 1
    sync_ports: Annotated[int, Field(ge=1, le=64)] = 1
    sync_persist_mode: bool = False
    sync_qlen_max: Number = 0
    sync_sock_size: Number = 0
    cache_bypass: bool = False
    expire_nodest_conn: bool = False
    sloppy_tcp: bool = False
    sloppy_sctp: bool = False
    expire_quiescent_template: bool = False
    sync_threshold: Annotated[tuple[Number, Number], BeforeValidator(_pair)] = (3, 50)
    sync_refresh_period: Number = 0
    sync_retries: Annotated[int, Field(ge=0, le=3)] = 0
    nat_icmp_send: bool = False
    pmtu_disc: bool = True
    backup_only: bool = False
    conn_reuse_mode: Annotated[int, Field(ge=0, le=REUSE_CLOSED | REUSE_FIN_WAIT)] = REUSE_CLOSED
    schedule_icmp: bool = False
    ignore_tunneled: bool = False
    run_estimation: bool = True
    lblc_expiration: Number = 86400
    lblcr_expiration: Number = 86400

    @model_validator(mode="after")
    def _check(self) -> Self:
        threshold, period = self.sync_threshold
        if period and threshold >= period:
            raise ValueError("sync_threshold: expected a threshold below the period, or period 0")
        if self.sync_ports & (self.sync_ports - 1):
            raise ValueError(f"sync_ports: expected a power of 2, not {self.sync_ports}")
        return self

    def changed(self, changes: Mapping[str, str | int]) -> Self:
        """These settings with some changed; values may be text as one writes into a sysctl.

        Raises:
            ConfigError: there is no such setting, or it cannot have that value.
        """
        for name in changes:
            if name not in NAMES:
                raise ConfigError(f"{name}: no such setting; there are {', '.join(NAMES)}")
        try:
            return type(self).model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            entry = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in entry["loc"])
            message = entry["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{where}: {message}" if where else message) from error

    def text(self, name: str) -> str:
        """A setting as one reads it from a sysctl."""
        value = getattr(self, name)
        return "\t".join(map(str, value)) if isinstance(value, tuple) else str(int(value))


NAMES: Final = tuple(Settings.model_fields)
"""The names of all settings."""

WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "conntrack": "there is no netfilter connection tracking in the way of the packets",
    "snat_reroute": "every packet is routed by its new addresses",
    "ignore_tunneled": "a packet is looked at once, as it arrives",
}
"""Settings that are accepted and change nothing, with the reason."""

"""The parts of a pair file about what a run leaves for the next, and what it tells meanwhile."""

import ipaddress
from typing import Annotated

from pydantic import Field

from lvsha.config_fields import AbsolutePath, IpAddress, Port, Table


class SavedStateTable(Table):
    """Where connections are kept over a restart.

    Without ``file`` they are kept in the state directory that the service manager gives, and
    nowhere if it gives none. ``interval`` 0 saves at an orderly stop only.
    """

    file: AbsolutePath | None = None
    interval: Annotated[float, Field(ge=0, le=86_400)] = 0
    age_max: Annotated[float, Field(ge=1, le=86_400)] = 300


class MetricsTable(Table):
    """Where metrics can be read by HTTP; nowhere without this table."""

    address: IpAddress = ipaddress.IPv4Address("127.0.0.1")
    port: Port = 9652

"""The names that a check may have for TLS are those that Python's ``ssl`` takes."""

import ssl

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from lvsha.config_health import Check

CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
LABELS = st.one_of(
    st.text("aB0_-", max_size=4), st.sampled_from(["", "x" * 63, "x" * 64, "xn--4ca", "1"])
)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join).filter(lambda name: len(name) < 254)


def is_accepted(key: str, name: str) -> bool:
    try:
        Check.model_validate({"type": "https", key: name})
    except ValidationError:
        return False
    return True


def is_taken(name: str) -> bool:
    try:
        CONTEXT.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError:  # UnicodeError is one
        return False
    return True


@given(NAMES)
@example("a..b")
@example(".x")
@example("x.")
@example("x" * 64)
@example("x" * 63 + ".")
def test_a_name_is_accepted_where_ssl_takes_it(name: str) -> None:
    taken = is_taken(name)
    assert is_accepted("sni", name) is taken
    assert is_accepted("host", name) is taken

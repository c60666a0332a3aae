"""Any words: understood or refused, never anything else; and what is saved is what was there."""

import ipaddress
import random
import shlex

from hypothesis import given, settings
from hypothesis import strategies as st

from lvsha.datapath.director import Director
from lvsha.errors import WireError
from lvsha.ipvsadm.arguments import parse
from lvsha.ipvsadm.commands import run
from lvsha.ipvsadm.exchange import Answer, Request
from lvsha.ipvsadm.names import NoNames, RecordedNames
from lvsha.ipvsadm.options import COMMANDS, OPTIONS, UsageError

NOW = 1000.0
VALUES = shlex.split(
    "192.0.2.10:80 192.0.2.10 [2001:db8::1]:80 2001:db8::1 10.1.0.2:8080 fd00:5::2 0 1 5 60 80 "
    "65535 65536 2147483647 4294967296 -1 +7 rr sh mh wlc sip gue gre ipip sh-port mh-port,flag-3 "
    "255.255.255.0 64 224.0.0.81 ff02::1 vec2 master backup -- - = [ ] : ,"
)
WORDS = st.one_of(
    st.sampled_from([f"--{option.long}" for option in (*COMMANDS, *OPTIONS)]),
    st.sampled_from([f"-{letter}" for option in (*COMMANDS, *OPTIONS) for letter in option.short]),
    st.sampled_from(VALUES),
    st.builds("--{}={}".format, st.sampled_from([o.long for o in OPTIONS]), st.text(max_size=8)),
    st.text(alphabet="-AEDCRSadeLlZtusfpMnrgimwxybhvo=01", min_size=1, max_size=6),
    st.text(max_size=12),
)
COMMAND_WORDS = st.sampled_from([*"AEDCRSadeLZ"]).map(lambda letter: f"-{letter}")
LINES = st.one_of(
    st.lists(WORDS, max_size=8),
    st.builds(lambda first, rest: [first, *rest], COMMAND_WORDS, st.lists(WORDS, max_size=8)),
)


@given(LINES)
@settings(max_examples=2000)
def test_any_words_are_understood_or_refused(words: list[str]) -> None:
    names = RecordedNames("192.0.2.10 www", ["http 80/tcp"])
    for source in (names, NoNames()):
        refusal = None
        try:
            parse(words, source)
        except UsageError as error:
            refusal = error
        assert refusal is None or (refusal.status in {2, 255} and str(refusal))


@given(st.lists(LINES, max_size=12), st.integers(0, 2**70))
@settings(max_examples=300)
def test_any_commands_leave_a_director_that_can_be_listed_and_restored(
    lines: list[list[str]], following: int
) -> None:
    director = Director(connections_max=100, dice=random.Random(1))
    for words in lines:
        result = run(words, "", director, NoNames(), NOW, following=following)
        assert result.status in {0, 1, 2, 255}
        assert bool(result.err) == bool(result.status)
    check_saved(director)


def check_saved(director: Director) -> None:
    saved = run(["-Sn"], "", director, NoNames(), NOW)
    other = Director(connections_max=100, dice=random.Random(1))
    assert run(["-R"], saved.out, other, NoNames(), NOW).err == ""
    assert run(["-Sn"], "", other, NoNames(), NOW) == saved
    for words in (["-Ln"], ["-Lnc"], ["-Ln", "--stats"], ["-Ln", "--tun-info"]):
        mine, theirs = (run(words, "", one, NoNames(), NOW) for one in (director, other))
        assert mine == theirs


ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(str), st.sampled_from(["192.0.2.1", "10.1.0.2", "224.0.0.1"])
)
PROTOCOLS = st.sampled_from(["-t", "-u", "--sctp-service"])


@given(
    st.lists(st.tuples(PROTOCOLS, st.ip_addresses(v=4), st.integers(1, 65535)), max_size=12),
    st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 65535)), max_size=6),
)
@settings(max_examples=100)
def test_configurations_survive_saving(
    services: list[tuple[str, ipaddress.IPv4Address, int]],
    servers: list[tuple[ipaddress.IPv4Address, int]],
) -> None:
    director = Director(connections_max=100, dice=random.Random(1))
    for option, address, port in services:
        run(shlex.split(f"-A {option} {address}:{port}"), "", director, NoNames(), NOW)
        for server, server_port in servers:
            words = f"-a {option} {address}:{port} -r {server}:{server_port} -m -w {port}"
            run(shlex.split(words), "", director, NoNames(), NOW)
    check_saved(director)


@given(
    st.dictionaries(
        st.sampled_from([*Request.model_fields]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5), lambda part: st.lists(part, max_size=4)
        ),
    )
)
def test_a_request_is_understood_or_refused(arguments: dict[str, object]) -> None:
    try:
        Request.parse(arguments).names()
    except WireError:
        return


@given(st.text(), st.integers(0, 255), st.integers(0) | st.none())
def test_an_answer_survives_the_socket(text: str, status: int, following: int | None) -> None:
    answer = Answer(status=status, out=text, err=text, following=following)
    assert Answer.parse(answer.model_dump(mode="json")) == answer

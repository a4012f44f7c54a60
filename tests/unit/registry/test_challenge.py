"""WWW-Authenticate headers, as registries write them and as they might."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadAnswer
from lazyfs.registry.challenge import MAX_HEADER, parse_challenges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ('Basic realm="Registry Realm"', [("basic", {"realm": "Registry Realm"})]),
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/x:pull,push",
                    },
                )
            ],
        ),
        ('BEARER Realm = "a\\"b\\\\" , service=plain', [("bearer", {"realm": 'a"b\\', "service": "plain"})]),
        (
            'Basic realm="x", Bearer realm="y", service="z"',
            [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "service": "z"})],
        ),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YWJj==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        (',, Basic realm="a,b" ,', [("basic", {"realm": "a,b"})]),
        ('Basic realm=""', [("basic", {"realm": ""})]),
        ('Bearer realm="x" service="y"', [("bearer", {"realm": "x", "service": "y"})]),
        ('Bearer realm="x"service="y"', [("bearer", {"realm": "x", "service": "y"})]),
        ('Bearer\trealm="x";service=y', [("bearer", {"realm": "x", "service": "y"})]),
        ('Bearer ,realm="x",,service="y",', [("bearer", {"realm": "x", "service": "y"})]),
        ('Bearer realm=https://h/token,service="y"', [("bearer", {"realm": "https://h/token", "service": "y"})]),
        ('Bearer realm="x",odd', [("bearer", {"realm": "x"}), ("odd", {})]),
        ('Bearer realm="x",@,service="y"', [("bearer", {"realm": "x"})]),
        ('Bearer realm="x",service="y', [("bearer", {"realm": "x"})]),
        ("@", []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """Several schemes in one header, quoted commas and escapes, unsupported tokens."""
    assert parse_challenges(header) == expected


def test_a_long_header_is_refused() -> None:
    """Before it is parsed."""
    with pytest.raises(BadAnswer):
        parse_challenges("x" * (MAX_HEADER + 1))


@given(st.text(alphabet='Bearer=", \\/xyz', max_size=60))
def test_any_header_parses_or_is_refused(header: str) -> None:
    """Never another exception."""
    with contextlib.suppress(BadAnswer):
        parse_challenges(header)


_VALUES = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
_NAMES = st.sampled_from(["realm", "service", "scope", "error"])


@given(st.lists(st.tuples(st.sampled_from(["basic", "bearer", "x"]), st.dictionaries(_NAMES, _VALUES, min_size=1)), max_size=3))
def test_what_is_written_by_the_grammar_is_read_back(challenges: list[tuple[str, dict[str, str]]]) -> None:
    """Any values, quoted."""
    quoted = [
        scheme
        + " "
        + ", ".join(
            f'{name}="{value.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'
            for name, value in parameters.items()
        )
        for scheme, parameters in challenges
    ]
    assert parse_challenges(", ".join(quoted)) == challenges

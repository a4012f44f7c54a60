"""URLs from untrusted sources."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import BadAnswer
from lazyfs.registry.url import MAX_URL, follow, is_loopback, parse_url

HERE = parse_url("https://registry.example/v2/a/blobs/x?y=1", "here")


@pytest.mark.parametrize(
    ("text", "expected", "authority"),
    [
        ("http://Host", ("http", "host", 80, "/"), "host"),
        ("https://host:443/a?b=c&d=%2F#frag", ("https", "host", 443, "/a?b=c&d=%2F"), "host"),
        ("http://host:443/", ("http", "host", 443, "/"), "host:443"),
        ("http://[::1]:5000/v2/", ("http", "::1", 5000, "/v2/"), "[::1]:5000"),
        (
            "https://my_bucket.s3.amazonaws.com/?X-Amz-Signature=a~b",
            ("https", "my_bucket.s3.amazonaws.com", 443, "/?X-Amz-Signature=a~b"),
            "my_bucket.s3.amazonaws.com",
        ),
    ],
)
def test_urls(text: str, expected: tuple[str, str, int, str], authority: str) -> None:
    """Parsed and formatted: path and query are left exactly as they are, because signatures cover them."""
    url = parse_url(text, "it")
    assert url[:4] == expected
    assert url.authority == authority
    assert parse_url(str(url), "it") == url


@pytest.mark.parametrize(
    "text",
    [
        "", "host/path", "//host", "ftp://host/", "file:///etc/passwd", "http://", "http://u@host/", "http://:p@host/", "http://@host/",
        "http://host:99999/", "http://host:x/", "http://a b/", "http://host/a b", "http://host/\r\nX: y", "http://höst/", "http://host/é",
        "http://[::1/", "http://-host/", "http://ho$st/", "http://host/" + "a" * MAX_URL,
    ],
)  # fmt: skip
def test_what_we_do_not_follow(text: str) -> None:
    """Other schemes, user info, and what would break a request line."""
    with pytest.raises(BadAnswer, match="it "):
        parse_url(text, "it")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://other/x?sig=1", "https://other/x?sig=1"),
        ("/x", "https://registry.example/x"),
        ("z", "https://registry.example/v2/a/blobs/z"),
        ("?n=2", "https://registry.example/v2/a/blobs/x?n=2"),
        ("//other/x", "https://other/x"),
        (" /a ", "https://registry.example/a"),
        ("/a b?c=d e", "https://registry.example/a%20b?c=d%20e"),
        ("/caf\xc3\xa9?x=\xe9#part", "https://registry.example/caf%C3%A9?x=%E9"),
        ("HTTPS://Other/A", "https://other/A"),
    ],
)
def test_locations_may_be_relative(location: str, expected: str) -> None:
    """As RFC 3986 resolves them. Invalid characters are escaped, as Go's clients do."""
    assert str(follow(HERE, location, "the redirect")) == expected


def test_no_way_down_from_https() -> None:
    """A redirect from https to http is refused; from http to either is allowed."""
    with pytest.raises(BadAnswer, match="from https to http"):
        follow(HERE, "http://registry.example/x", "the redirect")
    plain = parse_url("http://a/", "a")
    assert follow(plain, "http://b/x", "the redirect").scheme == "http"
    assert follow(plain, "https://b/x", "the redirect").scheme == "https"


def test_errors_do_not_show_signatures() -> None:
    """The URL of a redirect is a secret; the host is named."""
    with pytest.raises(BadAnswer) as caught:
        follow(HERE, "http://store/x?signature=SECRET", "the redirect")
    assert "SECRET" not in str(caught.value)
    assert "registry.example" in str(caught.value)


@given(st.text(max_size=80) | st.from_regex(r"\Ahttps?://[a-z0-9:\[\].@/?#%\\]{0,40}\Z"))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """What is accepted fits on a request line."""
    with contextlib.suppress(BadAnswer):
        url = parse_url(text, "it")
        assert url.target.startswith("/")
        assert str(url).isascii()
        assert str(url).isprintable()
        assert " " not in str(url)
    with contextlib.suppress(BadAnswer):
        follow(HERE, text, "the redirect")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.evil", False),
        ("127.0.0.1.nip.io", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    """Only addresses that cannot leave this machine."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("location", "basic"),
    [
        ("http://user:pass@there/x", "Basic dXNlcjpwYXNz"),
        ("http://user@there/x", "Basic dXNlcjo="),
        ("http://u%40x:p%3Aw@there/x", "Basic dUB4OnA6dw=="),
        ("http://u:p@x@there/x", "Basic dTpwQHg="),
        ("http://there/x", ""),
    ],
)
def test_a_redirect_may_log_in(location: str, basic: str) -> None:
    """As in Go's http client, it becomes the Authorization for that host. A path alone keeps it, and it is never shown."""
    url = follow(parse_url("http://here/", "here"), location, "the redirect")
    assert (url.basic, str(url), url.authority) == (basic, "http://there/x", "there")
    assert "pass" not in repr(url) and "dXNl" not in repr(url)
    assert follow(url, "/y", "the redirect").basic == basic
    assert follow(url, "//other/y", "the redirect").basic == ""


@pytest.mark.parametrize("userinfo", ["secret:<word>", "secret:%zz", "secret:[", "secret:99999"])
def test_what_no_user_is_called_is_not_repeated(userinfo: str) -> None:
    """Neither in the error nor in its causes."""
    location = f"http://{userinfo}@there/" if "99999" not in userinfo else "http://secret:99999/"
    with pytest.raises(BadAnswer) as found:
        follow(parse_url("http://here/", "here"), location, "the redirect")
    assert "secret" not in str(found.value) and found.value.__cause__ is None

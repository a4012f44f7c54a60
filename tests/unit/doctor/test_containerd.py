"""What is said of containerd's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazyfs.doctor import containerd
from lazyfs.doctor.containerd import examine_containerd, read_merged

SNIPPETS = Path(__file__).parents[3] / "systemd" / "containerd"
SOCKET = Path("/run/lazyfs/snapshots.sock")
SOCKETS = {"containerd": SOCKET}


@pytest.fixture(autouse=True, params=[1, 2])
def major(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The containerd that is installed."""
    version: int = request.param
    monkeypatch.setattr(containerd, "installed_major", lambda: version)
    return version


def verdicts(path: Path) -> dict[str, tuple[str, str]]:
    """By what they are about: verdict, and all that is said."""
    return {each.about: (each.verdict, f"{each.text} {each.hint}") for each in examine_containerd(path, SOCKETS)}


def changed(tmp_path: Path, major: int, old: str, new: str) -> dict[str, tuple[str, str]]:
    """What is said when something in the shipped configuration is another way."""
    text = (SNIPPETS / f"containerd-{major}.toml").read_text()
    assert old in text
    (tmp_path / "config.toml").write_text(text.replace(old, new))
    return verdicts(tmp_path / "config.toml")


def test_shipped_configurations_are_right(major: int) -> None:
    """Nothing is missing, and nothing lost."""
    found = verdicts(SNIPPETS / f"containerd-{major}.toml")
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert set(found) == {1: {"containerd", "cri"}, 2: {"containerd", "cri", "transfer"}}[major]


def test_no_configuration(tmp_path: Path, major: int) -> None:
    """The file to take is named."""
    verdict, said = verdicts(tmp_path / "none.toml")["containerd"]
    assert verdict == "missing" and f"containerd-{major}.toml" in said


def test_nothing_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a configuration nor a containerd: that is not an error."""
    monkeypatch.setattr(containerd, "installed_major", lambda: 0)
    assert verdicts(tmp_path / "none.toml")["containerd"][0] == "loss"


def test_no_entry(tmp_path: Path, major: int) -> None:
    """Another socket, or another kind of plugin, is not ours."""
    for old, new in (("/run/lazyfs/snapshots.sock", "/run/other.sock"), ('type = "snapshot"', 'type = "content"')):
        verdict, said = changed(tmp_path, major, old, new)["containerd"]
        assert verdict == "missing" and f"the address {SOCKET}" in said


def test_an_address_may_be_a_url(tmp_path: Path, major: int) -> None:
    """containerd takes both."""
    assert changed(tmp_path, major, f'"{SOCKET}"', f'"unix://{SOCKET}"')["containerd"][0] == "ok"


def test_two_names_for_one_socket(tmp_path: Path, major: int) -> None:
    """containerd collects the garbage of one name among the other's snapshots."""
    second = f'[proxy_plugins.other]\ntype = "snapshot"\naddress = "{SOCKET}"\n\n[proxy_plugins.lazyfs]'
    verdict, said = changed(tmp_path, major, "[proxy_plugins.lazyfs]", second)["containerd"]
    assert verdict == "missing" and "several names" in said


def test_kubernetes_uses_something_else(tmp_path: Path, major: int) -> None:
    """Who wants it that way loses no more than that."""
    assert changed(tmp_path, major, '  snapshotter = "lazyfs"', '  snapshotter = "native"')["cri"][0] == "loss"
    disabled = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\nversion'
    verdict, said = changed(tmp_path, major, "\nversion", f"\n{disabled}")["cri"]
    assert verdict == "loss" and "disabled" in said


def test_annotations(tmp_path: Path, major: int) -> None:
    """Up to 1.7 they have to be let through; from 2.1 on that very line has CRI pull by itself."""
    if major == 1:
        found = changed(tmp_path, major, "  disable_snapshot_annotations = false\n", "")
    else:
        found = changed(tmp_path, major, "disable_snapshot_annotations is", "is")
        assert found["cri"][0] == "ok"
        text = (SNIPPETS / "containerd-2.toml").read_text()
        (tmp_path / "config.toml").write_text(f"{text}disable_snapshot_annotations = false\n")
        found = verdicts(tmp_path / "config.toml")
    verdict, said = found["cri"]
    assert verdict == "missing" and "disable_snapshot_annotations" in said


@pytest.mark.parametrize(
    ("old", "new", "about", "verdict"),
    [
        ('enable_remote_snapshot_annotations = "true"', "", "transfer", "missing"),
        ('enable_remote_snapshot_annotations = "true"', "enable_remote_snapshot_annotations = true", "transfer", "missing"),
        ('    snapshotter = "lazyfs"', '    snapshotter = "native"', "transfer", "missing"),
        ('root = "/var/lib/lazyfs"', "", "exports", "loss"),
    ],
)
def test_transfer_service(tmp_path: Path, major: int, old: str, new: str, about: str, verdict: str) -> None:
    """The transfer service of 2.1 and later must be configured to unpack and to pass labels. Up to 1.7 there is none."""
    if major > 1:
        assert changed(tmp_path, major, old, new)[about][0] == verdict
    else:
        assert "transfer" not in verdicts(SNIPPETS / "containerd-1.toml")


def test_old_places_in_a_new_containerd(tmp_path: Path, major: int) -> None:
    """containerd 2.x reads 1.x's configuration, and looks for CRI's where it was."""
    text = (SNIPPETS / "containerd-1.toml").read_text().replace("  disable_snapshot_annotations = false\n", "")
    (tmp_path / "config.toml").write_text(text)
    assert verdicts(tmp_path / "config.toml")["cri"][0] == ("ok" if major > 1 else "missing")


def test_imports(tmp_path: Path, major: int) -> None:
    """They are followed, relative ones too; up to 1.x an imported section replaces what was there as a whole."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "a.toml").write_text((SNIPPETS / f"containerd-{major}.toml").read_text())
    (parts / "b.toml").write_text('[plugins."p"]\n  later = 1\n  list = [2, 3]\n')
    (tmp_path / "config.toml").write_text('imports = ["parts/*.toml"]\n[plugins."p"]\n  first = 1\n  list = [1, 2]\n')
    assert verdicts(tmp_path / "config.toml")["containerd"][0] == "ok"
    merged = read_merged(tmp_path / "config.toml", major)["plugins"]["p"]
    assert merged == ({"later": 1, "list": [2, 3]} if major == 1 else {"first": 1, "later": 1, "list": [1, 2, 3]})


@pytest.mark.parametrize("text", ["a = ", "\udcff", 'imports = ["config.toml"]'])
def test_what_cannot_be_read(tmp_path: Path, text: str) -> None:
    """Errors are reported, circular imports too."""
    (tmp_path / "config.toml").write_text(text, errors="surrogateescape")
    verdict, said = verdicts(tmp_path / "config.toml")["containerd"]
    assert verdict == "missing" and "cannot be read" in said

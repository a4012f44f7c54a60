"""The dialects that this version reads, and how to find a layer's dialect.

A layer's annotations decide. Rows, notes and file names without a dialect mean eStargz: earlier versions knew no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from lazyfs.errors import NotLazy, StoreUnusable, show
from lazyfs.format.dialect import Dialect, TocClaim
from lazyfs.format.digest import Digest, is_digest
from lazyfs.format.estargz import ESTARGZ

DIALECTS: tuple[Dialect, ...] = (ESTARGZ,)
"""A layer with the annotations of several belongs to the first. Only this module reads the table, so it is the one place to extend."""


def dialect_of(annotations: Mapping[str, str]) -> Dialect | None:
    """The dialect named by a layer's annotations, or by the labels that containerd made of them; None for an ordinary layer."""
    for dialect in DIALECTS:
        if all(name in annotations for name in dialect.annotations):
            return dialect
    return None


def claim_of(annotations: Mapping[str, str], what: str) -> TocClaim:
    """The layer's dialect and the TOC digest in its manifest. Raises NotLazy if there is none."""
    dialect = dialect_of(annotations)
    if dialect is None:
        raise NotLazy(f"{what} has no annotation {annotation_choices()}: its manifest names no TOC digest")
    text = claimed_digest(annotations)
    if not is_digest(text):
        raise NotLazy(f"{what} has the annotation {dialect.annotations[0]} {show(text)}, which is not a sha256 digest")
    return TocClaim(dialect, Digest(text))


def claimed_digest(annotations: Mapping[str, str]) -> str:
    """The TOC digest exactly as the annotation has it, unchecked; empty for an ordinary layer."""
    dialect = dialect_of(annotations)
    return annotations[dialect.annotations[0]] if dialect else ""


def with_claim(annotations: Mapping[str, str], claim: TocClaim) -> dict[str, str]:
    """A registry's annotations of a layer, with the TOC replaced by `claim`, which is what containerd's own manifest says.

    The annotations may name the dialect more precisely than labels do, but can never name another TOC.
    """
    merged = {**annotations, claim.dialect.annotations[0]: claim.digest}
    return merged if claimed_digest(merged) == claim.digest else claim.annotations


def annotation_choices() -> str:
    """The annotations that can make a layer lazy, for a message."""
    return " or ".join(dict.fromkeys(dialect.annotations[0] for dialect in DIALECTS))


def annotation_names() -> frozenset[str]:
    """Every annotation by which a layer may claim a dialect. Rewriting a layer makes all of them wrong."""
    return frozenset(name for dialect in DIALECTS for name in dialect.annotations)


def dialect_named(name: str) -> Dialect:
    """The dialect called `name`. Raises StoreUnusable if this version does not know it."""
    for dialect in DIALECTS:
        if dialect.name == name:
            return dialect
    raise StoreUnusable(f"a layer is of the dialect {show(name)}, which this lazyfs does not know", hint="Use a newer lazyfs")


def is_known(name: str) -> bool:
    """Whether this version knows the dialect `name`."""
    return any(dialect.name == name for dialect in DIALECTS)


def key_of(claim: TocClaim) -> str:
    """The `toc_key` of a TOC that a manifest names."""
    return toc_key(claim.digest, claim.dialect.name)


def toc_key(toc_digest: Digest, dialect: str) -> str:
    """64 hex digits that name what is derived from a TOC. Not always its digest: two dialects may read one document differently."""
    if dialect == ESTARGZ.name:
        return toc_digest[7:]
    return hashlib.sha256(f"{dialect} {toc_digest}".encode()).hexdigest()

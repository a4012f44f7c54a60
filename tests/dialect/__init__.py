"""A second dialect, which no product file knows: TOC in front, zstd frames, an annotation of its own. `front.py` reads it, `writing.py` writes it.

`site/` is a folder for PYTHONPATH: every Python process that starts with it there has the dialect in its registry, the daemon's own
children included.
"""

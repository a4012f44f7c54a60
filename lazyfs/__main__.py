"""`python -m lazyfs`."""

from lazyfs.cli.main import script

script()

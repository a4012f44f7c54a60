"""lazyfs: a container file system that starts before its image has arrived."""

__version__ = "0.1.0"

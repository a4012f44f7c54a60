"""One SSLContext for both ways to a registry, so that they trust the same CAs: the system's.

httpx by itself would trust certifi's. OpenSSL's defaults honour SSL_CERT_FILE and SSL_CERT_DIR.
"""

from __future__ import annotations

import functools
import ssl


@functools.cache
def system_context() -> ssl.SSLContext:
    """Built when the first https URL is asked for: reading the system's CAs costs some 20 ms."""
    return ssl.create_default_context()

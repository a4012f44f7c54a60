"""One SSLContext for both HTTP clients, so that they trust the same CAs: the system's.

httpx by itself would use certifi's. OpenSSL's defaults honour SSL_CERT_FILE and SSL_CERT_DIR.
"""

from __future__ import annotations

import functools
import ssl


@functools.cache
def system_context() -> ssl.SSLContext:
    """Created for the first https URL: reading the system's CAs takes about 20 ms."""
    return ssl.create_default_context()

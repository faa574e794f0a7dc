"""Security headers of every answer. Those of the API are constant; those of a documentation page allow its scripts."""

from __future__ import annotations

import base64
import re
from hashlib import sha256

Headers = list[tuple[bytes, bytes]]

_ALL: Headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# Answers are data, some of it private: they must not be executed, framed or cached.
API: Headers = [
    *_ALL,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
CLOSE = (b"connection", b"close")
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def of_page(body: bytes) -> Headers:
    """Headers of a documentation page: they allow only its own scripts and styles, and requests to this API."""
    hashes = [base64.b64encode(sha256(script).digest()) for script in _INLINE_SCRIPT.findall(body)]
    scripts = b"".join(b" 'sha256-" + each + b"'" for each in hashes)
    policy = (
        b"default-src 'none'; script-src 'self'" + scripts + b"; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    )
    return [*_ALL, (b"cache-control", b"no-cache"), (b"content-security-policy", policy)]

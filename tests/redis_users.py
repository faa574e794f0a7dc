"""The users of Redis that `deploy` ships, with passwords, and certificates for servers that they reach by TLS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trustme

ACL_FILES = [
    Path(__file__).parents[1] / "deploy" / name for name in ("redis-users.acl", "redis-sentinel-users.acl")
]


def shipped_users(password_of: Callable[[str], str]) -> list[str]:
    """The users of the files; each but `default` gets its password."""
    lines = [line for path in ACL_FILES for line in path.read_text().splitlines() if line.startswith("user ")]
    names = [line.split()[1] for line in lines]
    return [
        line if name == "default" else f"{line} >{password_of(name)}"
        for line, name in zip(lines, names, strict=True)
    ]


def issue_certificates(folder: Path) -> None:
    """Write the authority's certificate to `ca.pem`, and one for `localhost` with its key to `own.pem`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "own.pem"))

"""Removes secrets from messages, logs and command output. All errors of Modelyard are redacted here."""

from __future__ import annotations

import os
import re
from functools import cache
from urllib.parse import unquote

HIDDEN = "***"
LEAST_CHARACTERS = 8  # shorter values are words that also occur in other text
# User and password of a URL: the user alone may be a token. A path begins with a slash and contains neither.
USERINFO = re.compile(r"""(?<=://)(?!/)[^\s/?#'"<>]*@""")
PARAMETER = re.compile(
    r"""([?&][\w.-]*(?:password|passwd|pwd|secret|token|api_?key)[\w.-]*=)[^&#\s'"]+""", re.I
)
# Schemes of URLs whose user without a password is a name, never a token.
NAMED_USERS = re.compile(r"(redis|sentinel)s?", re.I)
VARIABLE = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|API_KEY|ACCESS_KEY|AUTH)$")


def redacted(text: str) -> str:
    """The text without passwords and tokens of URLs and of the environment variables."""
    if "://" in text:
        text = PARAMETER.sub(rf"\1{HIDDEN}", USERINFO.sub(f"{HIDDEN}@", text))
    known = _of_environment()
    return known.sub(HIDDEN, text) if known else text


@cache
def _of_environment() -> re.Pattern[str] | None:
    """A pattern for the secrets in this process's environment, in all forms used in messages of libraries."""
    found = set[str]()
    for name, value in os.environ.items():
        if VARIABLE.search(name):
            found |= {value, value.partition(":")[2]}  # user:password
        scheme, separator, rest = value.partition("://")
        if separator and "@" in rest and not rest.startswith("/"):
            user, _, password = rest.rpartition("@")[0].partition(":")
            secret = password or ("" if NAMED_USERS.fullmatch(scheme) else user)
            found |= {secret, unquote(secret)}
    long = sorted((each for each in found if len(each) >= LEAST_CHARACTERS), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, long))) if long else None

"""Remove user, password, signature and other parameters from URLs before they are shown or written.

All output (files for others, prints, logs) passes its values through `redact_secrets`. `to_json` and `to_yaml` write
the JSON and YAML files; tests/unit/shards/test_redact.py lists the few exceptions and the reason for each.
"""

import json
import re
from typing import Any

HTTP = ("http", "https")
PUBLIC = ("file", "memory")  # no secrets, and file names can contain any character
SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
# In running text: everything between quotes; otherwise a user and password, an IPv6 address in brackets, and all
# characters that end neither a word nor a list item.
QUOTED = rf"(?<='){SCHEME}[^'\s]*(?=')|(?<=\"){SCHEME}[^\"\s]*(?=\")"
BARE = SCHEME + r"(?:[^\s'\"\],/@]*@)?(?:\[[0-9A-Fa-f:.%]*\])?[^\s'\"\],]*"
URL = re.compile(f"{QUOTED}|{BARE}")
ALONE = re.compile(SCHEME + r"\S+")


def redact_url(url: str) -> str:
    """Return a URL that is safe to show: without user, password and signature."""
    scheme, sign, rest = url.partition("://")
    if not sign or scheme.lower() in PUBLIC:
        return url
    web = scheme.lower() in HTTP
    place = rest.partition("?")[0]
    if web:
        place = place.partition("#")[0]
    user, _, behind = place.partition("/")[0].rpartition("@")
    if user and (web or ":" in user):  # abfs://container@account holds no secret
        place = behind + place[len(user) + 1 + len(behind) :]
    return f"{scheme}://{place}"


def redact_secrets(value: Any) -> Any:
    """Return plain values with every URL in every text redacted by `redact_url`."""
    if isinstance(value, dict):
        return {redact_secrets(name): redact_secrets(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = map(redact_secrets, value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not isinstance(value, str) or "://" not in value:
        return value
    if ALONE.fullmatch(value):  # the value is only a URL, so a comma is part of it
        return redact_url(value)
    return URL.sub(_in_text, value)


def _in_text(found: re.Match[str]) -> str:
    url = found[0].rstrip(":;.)")  # punctuation of the surrounding text
    return redact_url(url) + found[0][len(url) :]


def without_secrets(text: str, url: str) -> str:
    """Return a driver's error message about a URL without the URL's secrets."""
    place, _, query = url.partition("://")[2].partition("?")
    user = place.partition("/")[0].rpartition("@")[0] if redact_url(url) != url else ""
    for secret in filter(None, (query, user, user.partition(":")[2])):
        text = text.replace(secret, "...")
    return redact_secrets(text)


def to_json(value: Any, **options: Any) -> str:
    """Return `value`, redacted, as JSON; `options` are passed to json.dumps."""
    return json.dumps(redact_secrets(value), **options)


def to_yaml(value: Any) -> str:
    """Return `value`, redacted, as YAML with keys in their original order."""
    import yaml  # imported lazily: most of shards does not need it

    return yaml.safe_dump(redact_secrets(value), sort_keys=False)

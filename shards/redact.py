"""URLs as they may be shown and written: without user, password, signature and other parameters.

Whatever writes a file for others, prints or logs passes its values through `redacted`: one rule for all writers. Files
of JSON and YAML are made by `to_json` and `to_yaml`; tests/unit/test_redact.py lists the few that are not, and why.
"""

import json
import re
from typing import Any

HTTP = ("http", "https")
PUBLIC = ("file", "memory")  # they hold no secrets, and file names may have any character
SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
# In a text: all between quotes; else a user and password, an IPv6 address in brackets, and whatever does not end a word
# or an item of a list.
QUOTED = rf"(?<='){SCHEME}[^'\s]*(?=')|(?<=\"){SCHEME}[^\"\s]*(?=\")"
BARE = SCHEME + r"(?:[^\s'\"\],/@]*@)?(?:\[[0-9A-Fa-f:.%]*\])?[^\s'\"\],]*"
URL = re.compile(f"{QUOTED}|{BARE}")
ALONE = re.compile(SCHEME + r"\S+")


def shown(url: str) -> str:
    """A URL for people, logs and files: without user, password and signature."""
    scheme, sign, rest = url.partition("://")
    if not sign or scheme.lower() in PUBLIC:
        return url
    web = scheme.lower() in HTTP
    place = rest.partition("?")[0]
    if web:
        place = place.partition("#")[0]
    user, _, behind = place.partition("/")[0].rpartition("@")
    if user and (web or ":" in user):  # in abfs://container@account nothing is secret
        place = behind + place[len(user) + 1 + len(behind) :]
    return f"{scheme}://{place}"


def redacted(value: Any) -> Any:
    """Plain values as they may be written down: every URL in every text as `shown` shows it."""
    if isinstance(value, dict):
        return {redacted(name): redacted(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = map(redacted, value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not isinstance(value, str) or "://" not in value:
        return value
    if ALONE.fullmatch(value):  # a URL and nothing else: a comma in it is one of its own
        return shown(value)
    return URL.sub(_in_text, value)


def _in_text(found: re.Match[str]) -> str:
    url = found[0].rstrip(":;.)")  # signs of the text around it
    return shown(url) + found[0][len(url) :]


def without_secrets(text: str, url: str) -> str:
    """What a driver said of a URL, which may repeat parts of it."""
    place, _, query = url.partition("://")[2].partition("?")
    user = place.partition("/")[0].rpartition("@")[0] if shown(url) != url else ""
    for secret in filter(None, (query, user, user.partition(":")[2])):
        text = text.replace(secret, "...")
    return redacted(text)


def to_json(value: Any, **options: Any) -> str:
    """Return `value`, redacted, as JSON; options: of json.dumps."""
    return json.dumps(redacted(value), **options)


def to_yaml(value: Any) -> str:
    """Return `value`, redacted, as YAML, its keys in their order."""
    import yaml  # imported here: most of shards does not need it

    return yaml.safe_dump(redacted(value), sort_keys=False)

"""Find the rejects of a build that name removed samples or people."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from shards.errors import UserError
from shards.format.manifest import Manifest
from shards.rules import check_pattern, normalize_unicode


def rejects_naming(
    manifest: Manifest, sources: Collection[str], person: str | None, *, words: bool = True
) -> Callable[[str, str], bool]:
    """Return a predicate: whether the source and detail of a reject name a removed sample or person.

    Args:
        manifest: manifest of the shards.
        sources: sources of the removed samples.
        person: name of the removed person; a reject also names the person if a group pattern of the build matches it.
        words: also match the name as a word anywhere in the text.
    """
    if person is None:
        return lambda source, detail: bool(source) and source in sources
    wanted = normalize_unicode(person)
    name = re.compile(rf"(?<![^\W_]){re.escape(wanted)}(?![^\W_])") if words and wanted else None
    groups = group_patterns(manifest.build)

    def is_named(text: str) -> bool:
        text = normalize_unicode(text)
        matches = (pattern.search(text) for pattern in groups)
        return bool(name and name.search(text)) or any(match and match.group(1) == wanted for match in matches)

    def names(source: str, detail: str) -> bool:
        return (bool(source) and source in sources) or any(map(is_named, (source, detail, *detail.split())))

    return names


def group_patterns(build: dict[str, Any]) -> list[re.Pattern[str]]:
    """Return the group patterns of the build of these shards and of the shards that they were derived from.

    A manifest may be untrusted: invalid patterns are skipped.
    """
    found, builds = [], [build]
    for told in builds:  # grows: shards may be derived from others, recursively
        rules, before = told.get("rules"), told.get("from")
        pattern = rules.get("group_pattern") if isinstance(rules, dict) else None
        with suppress(UserError, RecursionError, OverflowError):
            if isinstance(pattern, str) and pattern:
                check_pattern(normalize_unicode(pattern))
                found.append(re.compile(normalize_unicode(pattern)))
        for each in before if isinstance(before, list) else ():
            if isinstance(each, dict) and isinstance(each.get("build"), dict):
                builds.append(each["build"])
    return found

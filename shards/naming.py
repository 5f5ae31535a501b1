"""Which rejects of a build name what is removed from its shards."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from shards.errors import UserError
from shards.manifest import Manifest
from shards.rules import check_pattern, composed


def naming(
    manifest: Manifest, sources: Collection[str], person: str | None, *, words: bool = True
) -> Callable[[str, str], bool]:
    """Whether the source and the detail of a reject name what is removed: samples of `sources`, or a person.

    A person is named by the name as a word, if `words`, and by what a group pattern of the build makes the person of.
    """
    if person is None:
        return lambda source, detail: bool(source) and source in sources
    wanted = composed(person)
    name = re.compile(rf"(?<![^\W_]){re.escape(wanted)}(?![^\W_])") if words and wanted else None
    groups = group_patterns(manifest.build)

    def is_named(text: str) -> bool:
        text = composed(text)
        matches = (pattern.search(text) for pattern in groups)
        return bool(name and name.search(text)) or any(match and match.group(1) == wanted for match in matches)

    def names(source: str, detail: str) -> bool:
        return (bool(source) and source in sources) or any(map(is_named, (source, detail, *detail.split())))

    return names


def group_patterns(build: dict[str, Any]) -> list[re.Pattern[str]]:
    """The patterns by which the build of these shards, or of those that they were made from, told the person.

    A manifest may come from elsewhere: what is no pattern of a build is passed over.
    """
    found, builds = [], [build]
    for told in builds:  # grows: shards may be made from others, and these, too
        rules, before = told.get("rules"), told.get("from")
        pattern = rules.get("group_pattern") if isinstance(rules, dict) else None
        with suppress(UserError, RecursionError, OverflowError):
            if isinstance(pattern, str) and pattern:
                check_pattern(composed(pattern))
                found.append(re.compile(composed(pattern)))
        for each in before if isinstance(before, list) else ():
            if isinstance(each, dict) and isinstance(each.get("build"), dict):
                builds.append(each["build"])
    return found

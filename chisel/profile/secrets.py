"""Tell which variables' values are secrets. Pure.

The whole environment of a profiled program is taken out of what its profiler wrote, whatever it holds. These values
are looked for everywhere else as well: on a command line that was recorded, in a marker, in a log. A value that is a
common word would be found in kernels' names too, and blanked there; so it takes a telling name or the look of a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_TELLING = re.compile(r"TOKEN|SECRET|PASS(?:WORD|WD|PHRASE)?(?:_|$)|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH", re.I)
_KEY = re.compile(r"(?:^|_)KEY(?:_|$)", re.I)
_TOKEN_LIKE = re.compile(r"(?=.*[A-Za-z])(?=.*\d)[A-Za-z0-9+=_.:~-]{20,}")
_SHORTEST = 6


def secret_values(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that must not leave a droplet, longest first: one may be part of another."""
    found = {value for name, value in env.items() if len(value) >= _SHORTEST and _is_secret(name, value)}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def _is_secret(name: str, value: str) -> bool:
    if value.startswith(("/", "./", "~/")):
        return False
    return bool(_TELLING.search(name) or _KEY.search(name) or _TOKEN_LIKE.fullmatch(value))

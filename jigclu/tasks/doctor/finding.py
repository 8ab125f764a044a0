"""Result of a check, on one rank and on all of them."""

import socket
from typing import Literal, NamedTuple

from jigclu.system import collectives

LEVELS = ("ok", "warning", "error")
Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """Result of a check.

    name: of what was checked.
    level: whether it is in order, could be better, or would stop or spoil the run.
    text: what was seen.
    remedy: what to do about it; empty if there is nothing to do.
    details: all items that the text sums up, such as unreadable images.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""
    details: tuple[str, ...] = ()


def worst_of_ranks(finding: Finding) -> Finding:
    """Returns the most severe of the ranks' findings, and the machine on which it was made."""
    found = collectives.gather_objects((finding, socket.gethostname()))
    worst, host = max(found, key=lambda item: LEVELS.index(item[0].level))
    if worst.level == "ok" or len(found) == 1:
        return worst
    return worst._replace(text=f"on {host}: {worst.text}")

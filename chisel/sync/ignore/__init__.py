"""Decide what of a local tree is sent: git's rules exactly, and `.chiselignore` on top."""

from chisel.sync.ignore.git import Surroundings, default_surroundings, git_facts, surroundings_of
from chisel.sync.ignore.repository import GIT
from chisel.sync.ignore.rules import CHISEL_IGNORE, GIT_IGNORE, Place, Rules, Verdict

IGNORE_FILE = GIT_IGNORE

__all__ = [
    "CHISEL_IGNORE",
    "GIT",
    "GIT_IGNORE",
    "IGNORE_FILE",
    "Place",
    "Rules",
    "Surroundings",
    "Verdict",
    "default_surroundings",
    "git_facts",
    "surroundings_of",
]

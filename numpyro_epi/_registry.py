"""Finding what plugins registered, by entry point: lazy, and safe against broken and conflicting ones."""

import difflib
import os
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

DISABLE_VARIABLE = "NUMPYRO_EPI_DISABLE_PLUGINS"
"""Environment variable: comma-separated distribution names to leave out, or ``*`` for all but our own."""


class Provider(NamedTuple):
    """One registered name and where it comes from; reading it imports nothing.

    Attributes:
        name: The registered name, ``topic.name``.
        distribution: The package that registers it.
        version: That package's version.
        target: What its entry point loads, ``module:object``.
    """

    name: str
    distribution: str
    version: str
    target: str

    @property
    def qualified(self) -> str:
        """The name that also says which package, ``distribution:topic.name``."""
        return f"{self.distribution}:{self.name}"


class PluginError(ImportError):
    """A plugin's registered object could not be loaded, or is of the wrong type."""


class Registry:
    """The objects that installed distributions register under one entry-point group.

    Args:
        group: Entry-point group.
        kind: What one entry is called in messages.
        validate: Raises TypeError or ValueError for a loaded object that is not of this kind; returns what to hand out.
    """

    def __init__(self, group: str, *, kind: str, validate: Callable[[str, Any], Any]):
        self._group, self._kind, self._validate = group, kind, validate
        self._loaded: dict[Provider, Any] = {}

    def providers(self) -> list[Provider]:
        """Every registered name with its package, sorted, imported by nobody."""
        return sorted(self._entries())

    def get(self, name: str) -> Any:
        """Load one entry by its name, or by ``distribution:name`` where two packages claim it.

        Raises:
            LookupError: If no package registers the name, or if several do.
            PluginError: If the package that registers it fails to load it.
        """
        if not isinstance(name, str):
            raise LookupError(f"Expected the name of a registered {self._kind}, a text; got {name!r}.")
        entries = self._entries()
        distribution, _, short = name.rpartition(":")
        found = [p for p in entries if p.name == short and distribution in ("", p.distribution)]
        if not found:
            raise LookupError(self._unknown(name, entries))
        if len(found) > 1:
            claims = ", ".join(f"{p.distribution} {p.version} ({p.target})" for p in found)
            if len({p.qualified for p in found}) < len(found):
                raise LookupError(f"Expected {self._kind} {name!r} to be registered once; got {claims}. Remove one.")
            choices = " or ".join(repr(p.qualified) for p in found)
            raise LookupError(
                f"Expected one package to register {self._kind} {name!r}; got {claims}. Ask for {choices}."
            )
        provider = found[0]
        if provider not in self._loaded:
            self._loaded[provider] = self._load(provider, entries[provider])
        return self._loaded[provider]

    def _load(self, provider: Provider, entry: EntryPoint) -> Any:
        try:
            return self._validate(provider.name, entry.load())
        # A plugin is foreign code: whatever it raises while loading, sys.exit() too, is reported with its name.
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self._kind.capitalize()} {provider.name!r} of {provider.distribution} {provider.version} "
                f"({provider.target}) failed to load: {type(error).__name__}: {error}"
            ) from error

    def _entries(self) -> dict[Provider, EntryPoint]:
        off = {_canonical(name) for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()}
        found = {}
        for entry in entry_points(group=self._group):
            name = (entry.dist and entry.dist.name) or "unknown"
            version = (entry.dist and entry.dist.version) or "unknown"
            if _canonical(name) in off or ("*" in off and _canonical(name) != "numpyro-epi"):
                continue
            # The same distribution can stand twice on sys.path; equal providers collapse here.
            found[Provider(entry.name, name, version, entry.value)] = entry
        return found

    def _unknown(self, name: str, entries: dict[Provider, EntryPoint]) -> str:
        names = sorted({p.name for p in entries})
        close = difflib.get_close_matches(name, names, 3)
        hint = f"Did you mean {', '.join(map(repr, close))}?" if close else f"Registered: {', '.join(names) or 'none'}."
        return f"Expected a registered {self._kind}; got {name!r}. {hint}"


def _canonical(name: str) -> str:
    # PEP 503: one spelling for runs of - _ and . and for case.
    return re.sub(r"[-_.]+", "-", name.strip()).lower()

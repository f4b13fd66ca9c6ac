"""Forgetting in words: what the base knew before and after, as far as a run measured it."""

from collections.abc import Mapping
from typing import Any

from deltatune.core.amounts import figure
from deltatune.report.verdict import said


def forgetting(results: Mapping[str, Any]) -> list[str]:
    """A sentence for every measure; what could not be measured says why. Empty for a run that did not ask."""
    found = results.get("forgetting")
    if not found:
        return []
    agreement, language = found["agreement"], found["language"]
    sentences = [
        f"Agreement with the base: {agreement['why']}."
        if "why" in agreement
        else f"What the last block makes of {found['rows']:,} validation rows agrees with the base's to "
        f"{_after(agreement)}; 1 is the base itself.",
        f"Its loss on general texts: {language['why']}."
        if "why" in language
        else f"The {language['kind']} loss on {found['texts']:,} texts is {figure(language['off'])} nats per token "
        f"before and {_after(language)}.",
    ]
    return [*sentences, _old(found["old"])] if "old" in found else sentences


def _old(old: Mapping[str, Any]) -> str:
    """An old task's metric."""
    rows = f"on {old['rows']:,} rows of its own" + (
        f" ({old['rejected']:,} could not be used)" if old["rejected"] else ""
    )
    name = f"The old task, {old['task'].replace('-', ' ')}"
    if "why" in old:
        return f"{name}, {rows}: {old['why']}."
    return f"{name}: {said(old['metric'])} is {figure(old['off'])} before and {_after(old)}, {rows}."


def _after(states: Mapping[str, Any]) -> str:
    merged = "" if states["merged"] is None else f" ({figure(states['merged'])} when it is merged)"
    return f"{figure(states['on'])} with the adapter on{merged}"

"""The TOML of a new run: at most fifteen settings, each with its reason above it. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.setup.proposal import Proposal, Value

HEAD = """\
# A run of opd. Every key that is not here has the value of the base:
#   opd config show -c {file}   prints them all
#   opd try -c {file}   one small round through every stage, and what the whole will cost
"""

INLINE = ("run", "student", "teachers", "prompts")
"""Tables on a line of their own."""

Tables = Mapping[str, Mapping[str, Any]]


def toml_of(proposal: Proposal, given: Tables, *, notes: Mapping[str, str], file: str) -> str:
    """Return the TOML.

    Args:
        proposal: the profile, and what differs from it.
        given: table → key → value of what is no proposal, such as models.
        notes: table → what stands above it.
        file: its name.
    """
    base = f"# {proposal.reason}\nbase = {json.dumps(proposal.base)}"
    lines = [HEAD.format(file=file), base, ""]
    for name in INLINE:
        own = [one for one in proposal.values if one.section == name]
        lines += _inline(name, {**given[name], **{one.key: one.value for one in own}}, own, notes)
    rest = dict.fromkeys([*(one.section for one in proposal.values), *given])
    for name in rest:
        if name not in INLINE:
            own = [one for one in proposal.values if one.section == name]
            lines += ["", f"[{name}]", *_table(given.get(name, {}), own, notes.get(name, ""))]
    return "\n".join(lines) + "\n"


def settings_in(text: str) -> int:
    """Return how many lines of a TOML are settings."""
    lines = (line.strip() for line in text.splitlines())
    return sum("=" in line and not line.startswith("#") for line in lines)


def _inline(
    name: str, values: Mapping[str, Any], own: list[Value], notes: Mapping[str, str]
) -> Iterator[str]:
    if name in notes:
        yield from (f"# {line}" for line in notes[name].splitlines())
    yield from (f"# {one.key}: {one.reason}" for one in own)
    yield f"{name} = {_toml(values)}"


def _table(given: Mapping[str, Any], own: list[Value], note: str) -> Iterator[str]:
    yield from (f"# {line}" for line in note.splitlines())
    yield from (f"{key} = {_toml(value)}" for key, value in given.items())
    for one in own:
        yield f"# {one.reason}"
        yield f"{one.key} = {_toml(one.value)}"


def _toml(value: Any) -> str:
    """Return a value as TOML writes it on one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {_toml(part)}" for key, part in value.items())
        return f"{{ {inner} }}"
    return json.dumps(value, ensure_ascii=False)

"""Reads cases, gives them names of their own, and fills in what earlier steps have saved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_REFERENCE = re.compile(r"\$([a-z][a-z0-9_]*)((?:\.[a-z0-9_]+)*)$")
_CASE_KEYS = {"name", "queues", "names", "steps"}
_STEP_KEYS = {"do", "with", "client", "deadline", "expect", "error", "save"}


@dataclass
class Step:
    """One step of a case."""

    do: str
    arguments: dict[str, Any]
    client: str | None
    deadline: float | None
    expect: Any
    expects_value: bool
    error: dict[str, Any] | None
    save: str | None


@dataclass
class Case:
    """One case, whose names are those of this run."""

    name: str
    queues: dict[str, dict[str, Any]]
    names: list[str]
    steps: list[Step]
    saved: dict[str, Any] = field(default_factory=dict)

    def filled(self, value: Any) -> Any:
        """The value with what `$name` stands for, and with the texts and lists that it describes."""
        if isinstance(value, dict):
            if len(value) == 1:
                ((key, argument),) = value.items()
                if key == "$text":
                    return str(argument[0]) * argument[1]
                if key == "$list":
                    return [self.filled(argument[0])] * argument[1]
            return {key: self.filled(element) for key, element in value.items()}
        if isinstance(value, list):
            return [self.filled(element) for element in value]
        if isinstance(value, str) and value not in ("$any", "$absent") and (match := _REFERENCE.match(value)):
            return self._reference(match[1], match[2].split(".")[1:])
        return value

    def _reference(self, name: str, path: list[str]) -> Any:
        if name not in self.saved:
            raise ValueError(f"nothing is saved as {name}")
        value = self.saved[name]
        for part in path:
            value = value[int(part)] if isinstance(value, list) else value[part]
        return value


def load(directory: Path, prefix: str) -> list[Case]:
    """All cases of the directory's files, each with a prefix of its own that begins with `prefix`."""
    raw = [case for file in sorted(directory.glob("*.yaml")) for case in yaml.safe_load(file.read_text("utf-8"))]
    cases = [_case(case, f"{prefix}{index}_") for index, case in enumerate(raw)]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ValueError(f"cases share a name: {sorted({name for name in names if names.count(name) > 1})}")
    return cases


def _case(raw: dict[str, Any], prefix: str) -> Case:
    _only(raw, _CASE_KEYS, f"case {raw['name']!r}")
    queues = raw.get("queues") or {}
    if isinstance(queues, list):
        queues = {name: {} for name in queues}
    own = {name: prefix + name for name in [*queues, *raw.get("names", [])]}
    return Case(
        name=raw["name"],
        queues={own[name]: _renamed(settings or {}, own) for name, settings in queues.items()},
        names=list(own.values()),
        steps=[_step(step, own) for step in raw["steps"]],
    )


def _step(raw: dict[str, Any], own: dict[str, str]) -> Step:
    _only(raw, _STEP_KEYS, f"a step {raw['do']!r}")
    return Step(
        do=raw["do"],
        arguments=_renamed(raw.get("with") or {}, own),
        client=raw.get("client"),
        deadline=raw.get("deadline"),
        expect=_renamed(raw.get("expect"), own),
        expects_value="expect" in raw,
        error=_renamed(raw.get("error"), own),
        save=raw.get("save"),
    )


def _only(raw: dict[str, Any], keys: set[str], where: str) -> None:
    if unknown := set(raw) - keys:
        raise ValueError(f"{where} has unknown keys: {sorted(unknown)}")


def _renamed(value: Any, own: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(element, own) for key, element in value.items()}
    if isinstance(value, list):
        return [_renamed(element, own) for element in value]
    return own.get(value, value) if isinstance(value, str) else value

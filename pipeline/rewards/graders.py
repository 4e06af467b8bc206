"""Rewards: functions that grade a response against its reference.

A reward takes the response's text, the reference (or None) and the prompt's free columns, and
returns a number, 1.0 for right and 0.0 for wrong.
"""

import importlib
import re
import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from schemas.config.evaluation import EvalSection
from schemas.errors import ConfigError

Reward = Callable[[str, str | None, dict[str, Any]], float]

NUMBER = re.compile(r"(?:(?<![\d.])[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def find_reward(section: EvalSection, folder: Path) -> Reward:
    """Return the reward of a configuration.

    Args:
        section: names the reward.
        folder: where a user's module is looked for first.

    Raises:
        ConfigError: the pattern or the user's function cannot be used.
    """
    if section.reward == "exact_match":
        return _exact_match
    if section.reward == "last_number":
        return _last_number
    if section.reward == "regex":
        return _regex(section.pattern or "")
    return _imported(section.reward, folder)


def _exact_match(response: str, reference: str | None, columns: dict[str, Any]) -> float:
    return float(response.strip() == _needed(reference).strip())


def _last_number(response: str, reference: str | None, columns: dict[str, Any]) -> float:
    found, expected = NUMBER.findall(response), NUMBER.findall(_needed(reference))
    if not expected:
        raise ConfigError(f"reward last_number: the reference {reference!r} holds no number")
    return float(bool(found) and _number(found[-1]) == _number(expected[-1]))


def _regex(pattern: str) -> Reward:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"eval.pattern = {pattern!r} is no regular expression: {error}") from None

    def reward(response: str, reference: str | None, columns: dict[str, Any]) -> float:
        match = compiled.search(response)
        if match is None:
            return 0.0
        found = match.group(1) if compiled.groups else match.group(0)
        return float(found == _needed(reference))

    return reward


def _imported(name: str, folder: Path) -> Reward:
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, str(folder))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(
            f"eval.reward = {name!r} cannot be imported ({type(error).__name__}: {error}); it is "
            f"looked for in {folder} and on the Python path"
        ) from error
    finally:
        sys.path.remove(str(folder))
    if not callable(function):
        raise ConfigError(f"eval.reward = {name!r} is not a function")

    def reward(response: str, reference: str | None, columns: dict[str, Any]) -> float:
        value = function(response, reference, columns)
        if not isinstance(value, Real):
            raise ConfigError(f"eval.reward {name!r} returned {value!r}, expected a number")
        return float(value)

    return reward


def _needed(reference: str | None) -> str:
    if reference is None:
        raise ConfigError(
            "an eval prompt has no 'reference', which this reward compares with: add one to every "
            "row of prompts.eval, or use a reward of your own"
        )
    return reference


def _number(text: str) -> float:
    return float(text.replace(",", ""))

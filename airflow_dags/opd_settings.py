"""Settings of the DAGs: one TOML file says where tasks run, on what, and how often they are tried.

`OPD_AIRFLOW_SETTINGS` names the file; without it every default holds. Secrets are no settings: they
are named here and stay where they are. Standard library only.
"""

import difflib
import os
import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")
KINDS = ("plan", "rollout", "grade", "score", "train", "eval", "cache")
"""Kinds of tasks that can be given hardware of their own."""

SAFE_OVERRIDES = (
    *("run.name", "run.seed", "run.rounds", "loss.*", "gate.*", "train.*"),
    *("rollout.prompts_per_round", "rollout.samples_per_prompt", "rollout.max_new_tokens"),
    *("rollout.temperature", "rollout.top_p", "rollout.top_k", "rollout.candidates"),
    *("rollout.batch_tokens", "score.batch_tokens", "eval.batch_tokens"),
    *("score.k", "score.top_p", "score.min_k", "score.tail_buckets", "score.draws"),
    *("score.sample", "score.codec", "rollout.sample"),
    *("eval.max_prompts", "eval.samples_per_prompt", "eval.max_new_tokens", "eval.every_rounds"),
    *("eval.temperature", "eval.top_p", "eval.top_k", "eval.teachers"),
    *("reward.unfinished", "reward.advantage", "reward.processes"),
)
"""Keys that are numbers and choices: none names a file, a model, a server, a variable or code."""


@dataclass(frozen=True)
class Volume:
    """A volume claim that pods mount."""

    claim: str
    mount: str
    read_only: bool = False


@dataclass(frozen=True)
class Kind:
    """`[kinds.NAME]`: where tasks of one kind run, and for how long."""

    pool: str | None = None
    """Airflow pool that limits how many run at once, such as one per kind of GPU; it must exist."""
    pool_slots: int = 1
    queue: str | None = None
    """Queue of the executor, such as that of Celery workers with GPUs."""
    timeout_h: float = 24.0
    """Hours after which a task is interrupted, and tried again."""
    env: dict[str, str] = field(default_factory=dict)
    """Further environment of the process; no secrets."""
    image: str | None = None
    """Kubernetes: instead of that of `[kubernetes]`."""
    gpus: int = 0
    cpu: str | None = None
    memory: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Kubernetes:
    """`[kubernetes]`: what all pods share."""

    image: str | None = None
    namespace: str = "default"
    service_account: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    """Names of Kubernetes secrets whose keys become environment variables, such as `AWS_*`."""
    config_maps: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    shared_memory: str | None = None
    """Size of /dev/shm, such as `16Gi`: engines of several GPUs need it."""
    command: tuple[str, ...] = ("opd",)
    """The command line inside the image."""
    in_cluster: bool | None = None
    startup_timeout_s: int = 1800
    """Seconds until a pod must have started; images with vLLM are large."""


@dataclass(frozen=True)
class Settings:
    """The whole file."""

    backend: str = "local"
    """`local`: processes of `opd` on Airflow's workers. `kubernetes`: a pod for each task."""
    config: str | None = None
    """Default of the DAGs' Param `config`."""
    configs: tuple[str, ...] = ()
    """Further configurations that the Param may be; an entry that ends with `/` is a folder, and
    all in it is allowed."""
    overrides: tuple[str, ...] = SAFE_OVERRIDES
    """Keys that the Param `overrides` may replace; `section.*` is all of a section."""
    rounds: int = 8
    """Rounds in the graph of opd_rounds: the most that one DAG run can do."""
    retries: int = 4
    retry_delay_s: float = 60.0
    """Seconds before the first new try; doubled for each one after it."""
    max_retry_delay_s: float = 1800.0
    stop_s: float = 60.0
    """Seconds between SIGTERM and SIGKILL."""
    notify: tuple[str, ...] = ()
    """Command that gets a JSON object on stdin when a task or a run fails, or a run succeeds."""
    upkeep_schedule: str | None = "@weekly"
    """When opd_upkeep runs; `""` for by hand only."""
    kinds: dict[str, Kind] = field(default_factory=dict)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)

    def kind(self, name: str) -> Kind:
        """Return the settings of a kind of tasks."""
        return self.kinds.get(name, Kind())


@cache
def load_settings() -> Settings:
    """Return the settings of this process's environment.

    Raises:
        ValueError: the file cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    path = os.environ.get("OPD_AIRFLOW_SETTINGS")
    if not path:
        return Settings()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"OPD_AIRFLOW_SETTINGS = {path}: {error.strerror}") from error
    return parse_settings(text, where=path)


def parse_settings(text: str, *, where: str) -> Settings:
    """Return the settings written in TOML text.

    Raises:
        ValueError: as `load_settings` does.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not valid TOML: {error}") from error
    kinds = {}
    for name, table in tree.pop("kinds", {}).items():
        if name not in KINDS:
            raise ValueError(f"{where}: kinds.{name}: unknown{_hint(name, KINDS)}")
        kinds[name] = _make(Kind, table, f"{where}: kinds.{name}")
    shared = dict(tree.pop("kubernetes", {}))
    volumes = [
        _make(Volume, table, f"{where}: kubernetes.volumes") for table in shared.pop("volumes", [])
    ]
    kubernetes = _make(Kubernetes, {**shared, "volumes": volumes}, f"{where}: kubernetes")
    settings = _make(Settings, {**tree, "kinds": kinds, "kubernetes": kubernetes}, where)
    _check(settings, where)
    return settings


def _check(settings: Settings, where: str) -> None:
    if settings.backend not in ("local", "kubernetes"):
        raise ValueError(
            f"{where}: backend = {settings.backend!r}; it can be 'local' or 'kubernetes'"
        )
    images = [settings.kind(name).image or settings.kubernetes.image for name in KINDS]
    if settings.backend == "kubernetes" and not all(images):
        raise ValueError(f"{where}: backend = 'kubernetes' needs kubernetes.image")
    for key in ("configs", "overrides"):
        if not all(isinstance(one, str) and one for one in getattr(settings, key)):
            raise ValueError(f"{where}: {key} is a list of texts, and one is none or empty")
    for key, least in (("rounds", 1), ("retries", 0), ("retry_delay_s", 0), ("stop_s", 0)):
        if getattr(settings, key) < least:
            raise ValueError(f"{where}: {key} = {getattr(settings, key)!r} is below {least}")


def _make(kind: type[T], table: dict[str, Any], where: str) -> T:
    """Return a dataclass of a TOML table whose keys are known and of the right kind."""
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]  # each T is one
    values = {}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{where}: {key}: unknown key{_hint(key, tuple(known))}")
        given = tuple(value) if isinstance(value, list) else value
        if not _fits(given, known[key].type):
            raise ValueError(f"{where}: {key} = {value!r} is not of type {_words(known[key].type)}")
        values[key] = given
    missing = [name for name, one in known.items() if _is_required(one) and name not in values]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    return kind(**values)


def _is_required(one: Any) -> bool:
    return repr(one.default) == repr(one.default_factory)  # both are dataclasses.MISSING


def _fits(value: Any, expected: Any) -> bool:
    """Return whether a value is of a field's type, by the outermost type alone."""
    if isinstance(expected, UnionType):
        return any(_fits(value, one) for one in get_args(expected))
    kind = get_origin(expected) or expected
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _words(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected)


def _hint(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"

"""Write docs/configuration.md from the schema of a run: every key, its type, unit and default.

Usage: python docs/make_configuration.py [--check]

The text depends on the schema alone. With --check nothing is written, and the exit status is 1
where the file is out of date.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generated import main

from schemas.config.profiles.base import profile_names, profile_text
from schemas.config.run import RunConfig

TARGET = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration

<!-- Written by docs/make_configuration.py from schemas/config/run.py and the tables it names. -->

One TOML file describes a run. `opd config validate -c run.toml` checks it, `opd config show` prints
it with all defaults, `opd config schema` prints what follows as a JSON schema.

- A key that changes results has no default. An unknown key is an error that names the nearest
  right one.
- `base = "opd:full"`, above the first table, names a [profile](#profiles): its values stand where
  the file has none.
- `--set section.key=value` replaces a key for one call and may be repeated. The value is TOML; a
  word that is no TOML is text: `--set train.learning_rate=2e-6 --set loss.kind=jsd`.
- A relative path starts from the folder of the TOML file, `~` is the home folder.
- A model is a folder in the Hugging Face format, a folder with a PEFT adapter, or a hub id with the
  full commit hash as its `revision`.
- Credentials are no keys: they come from `AWS_*` variables ([storage.md](storage.md)). A URL that
  holds a user, a password or parameters is refused, and no message repeats it.
- Numbers are finite, and have the bounds that the tables name. A part of a key that has a dot in it
  stands in quotes: `--set 'teachers."v1.5".model=big'`.

The column *fixed* says whether a value is fixed once the run has begun. **yes**: another value is
refused with exit code 3, so give the new settings a `run.name` of their own. **no**: the key is
about speed, place or length, and may change between any two calls.

Some keys depend on each other; these checks raise, they never change a value:

- `train.schedule` other than `"constant"` needs `train.decay_steps`.
- `train.offload_optimizer` needs `train.zero_stage` of 1 or above.
- `loss.kind = "policy_gradient"` with `loss.importance = "none"` needs `rollout.temperature = 1.0`;
  with another one it needs `rollout.top_p = 1.0` and `rollout.top_k = 0`.
- `loss.policy.clip_low`, `clip_high`, `beyond_cap` and `importance_floor` need a `loss.importance`;
  a `kl_type` other than `"advantage"` refuses the keys about advantages.
- `[eval]` needs `prompts.eval`; `eval.pattern` belongs to `eval.reward = "regex"`;
  `eval.samples_per_prompt` above 1 needs `eval.temperature` above 0.
- `loss.kind = "sft"` learns from one teacher, and refuses `loss.rl_weight` and `[loss.gate]`.
- `[loss.gate]` needs `[reward]` where it asks for rewards, `loss.gate.teacher = "eval"` an `[eval]`
  with `teachers = true`, and `loss.gate.compress_nats` `loss.kind = "policy_gradient"`.
- `reward.pattern` belongs to `reward.grader = "regex"`, and `reward.command` to `"command"`; so for
  `[eval]`.
- `rollout.engine` and `eval.engine = "server"` with `urls` need `{policy}` in `server.model`;
  `score.engine = "server"` refuses `score.tail_buckets` above 1, `score.draws`, `score.sample`,
  `score.temperatures`,
  `rollout.candidates` and `rollout.sample`, and `rollout.engine = "server"` the last;
  `vllm.data_parallel_size` above 1 needs `engine = "server"`.
- `score.k = 0` needs `score.sample` or `rollout.sample`, and refuses `score.top_p` below 1.
- `vllm.keep_between_stages` needs `engine = "vllm"`, and `[score.vllm]` refuses it.
- `gate.target_accuracy` and `gate.max_accuracy_drop` need `[eval]`.
- `rollout.prompts_per_round` × `rollout.samples_per_prompt` are at most 2,147,483,647.
- `student.sft_teacher` is the name of one of the `[teachers.NAME]`.
"""

PROFILES = """\
## Profiles

| base | for |
|-|-|
| `opd:full` | all weights of the student learn, on one or more GPUs |
| `opd:lora` | an adapter learns beside the weights of the student, on one GPU |
| `opd:cpu` | all weights of a small student learn, on a CPU |

A value of the file, or of `--set`, stands over that of its base; a table stands over it key by key.
Values for `[eval]`, `[reward]` and `[gate]` count only where the file has the table. The files of
`schemas/config/profiles/` have the reason of each value beside it. `opd config show -c run.toml`
prints the whole, and which keys are those of the base.

A profile has a version. `"opd:cpu@1"` means the same for ever, `"opd:cpu"` the newest one that the
installed opd has. What a run is, `run.json`, holds the values themselves and never asks a profile
again: where a newer version of one would change a run that has begun, its next command ends with
exit code 3, names the keys, and says which version to write.

These are the values of the newest versions:
"""

UNITS = {
    r"(_|^)tokens$": "tokens",
    r"_bytes_per_s$": "bytes per second",
    r"_s$": "seconds",
    r"_gb$": "GiB",
    r"^max_num_seqs$": "sequences",
    r"_parallel_size$": "GPUs",
    r"_steps$": "optimizer steps",
    r"^(rounds|every_rounds|max_staleness)$": "rounds",
    r"^(prompts_per_.*|max_prompts)$": "prompts",
    r"^samples_per_prompt$": "samples",
    r"^sequences_per_step$": "sequences",
    r"^shuffle_shards$": "shards",
    r"^(num_)?processes$": "processes",
    r"^concurrency$": "requests",
    r"^max_connections$": "connections",
    r"_nats$": "nats",
    r"^anneal_from$": "optimizer steps",
    r"^(advantage_clip|teacher_logprob_floor|verify_tolerance)$": "nats",
    r"^(k|top_k|stop_token_ids)$": "token ids",
}
"""Pattern of a key's name → unit of its value."""

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
"""Bound of a JSON schema → sign."""

Schema = dict[str, Any]


def render() -> str:
    """Return the whole text of the page."""
    schema = RunConfig.model_json_schema()
    parts = [INTRODUCTION]
    for name, field in schema["properties"].items():
        parts.append("\n".join(_section(name, field, schema)))
    for names, field in _nested(schema):
        parts.append("\n".join(_table(names, field, schema)))
    parts.append("\n".join(_profiles()))
    return "\n".join(parts)


def _profiles() -> Iterator[str]:
    """Yield the lines about profiles: each value of each in its newest version."""
    newest = {name.partition("@")[0]: name for name in profile_names()}
    values = [dict(_leaves(tomllib.loads(profile_text(name)), "")) for name in newest.values()]
    yield PROFILES
    yield "| key | " + " | ".join(f"`{name}`" for name in newest.values()) + " |"
    yield "|-|" + "-|" * len(newest)
    for key in dict.fromkeys(key for found in values for key in found):
        cells = [f"`{_value(found[key])}`" if key in found else "" for found in values]
        yield f"| `{key.replace('*', 'NAME')}` | " + " | ".join(cells) + " |"
    yield ""


def _leaves(tree: Schema, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nested(whole: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the tables inside sections, each once with all places that it may stand in."""
    places: dict[str, list[str]] = {}
    fields: dict[str, Schema] = {}
    for name, section in whole["properties"].items():
        if "patternProperties" in section:
            continue
        for key, field in _resolve(section, whole)["properties"].items():
            if reference := _reference(field):
                places.setdefault(reference, []).append(f"`[{name}.{key}]`")
                fields[reference] = field
    for reference, names in places.items():
        yield ", ".join(names), fields[reference]


def _section(name: str, field: Schema, whole: Schema) -> Iterator[str]:
    """Yield the lines of a section of the TOML."""
    tables = field.get("patternProperties")
    section = _resolve(next(iter(tables.values())) if tables else field, whole)
    heading = f"`[{name}.NAME]`" if tables else f"`[{name}]`"
    yield from _table(heading, field, whole, section, optional=name not in whole["required"])


def _table(
    heading: str,
    field: Schema,
    whole: Schema,
    section: Schema | None = None,
    *,
    optional: bool = True,
) -> Iterator[str]:
    """Yield the lines of a table's keys; the tables inside it stand elsewhere."""
    section = section or _resolve(field, whole)
    yield f"## {heading}"
    yield ""
    yield field["description"] + (" The section may be left out." if optional else "")
    yield ""
    yield "| key | type | unit | default | fixed | meaning |"
    yield "|-|-|-|-|-|-|"
    required = section.get("required", [])
    for key, schema in section["properties"].items():
        if _reference(schema):
            continue
        default = "*required*" if key in required else f"`{_value(schema.get('default', {}))}`"
        cells = [
            f"`{key}`",
            _kind(schema, whole),
            "" if schema.get("type") == "boolean" else _unit(key),
            default.replace("`none`", "none"),
            "no" if schema.get("identity") is False else "yes",
            " ".join(schema["description"].split()),
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _unit(key: str) -> str:
    """Return the unit of a key's value, empty where it has none."""
    return next((unit for pattern, unit in UNITS.items() if re.search(pattern, key)), "")


def _reference(schema: Schema) -> str | None:
    """Return the reference to a table that a schema is, alone or beside null; None for others."""
    options = schema.get("anyOf", [schema])
    return next((str(option["$ref"]) for option in options if "$ref" in option), None)


def _resolve(schema: Schema, whole: Schema) -> Schema:
    """Return the object schema behind a reference, alone or beside null."""
    reference = _reference(schema) or ""
    resolved: Schema = whole["$defs"][reference.rsplit("/", 1)[1]]
    return resolved


def _kind(schema: Schema, whole: Schema) -> str:
    """Return a type in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(o, whole) for o in schema["anyOf"] if o.get("type") != "null")
    if "const" in schema:
        return f"`{_value(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{_value(item)}`" for item in schema["enum"])
    kind = schema["type"]
    if kind == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        kinds = {str(item.get("type")): "" for item in items}
        if len(kinds) > 1:  # such as the points of a schedule: what each part is, in short
            kinds = {kind: _kind({"type": kind}, whole) for kind in kinds}
            return f"[{', '.join(kinds)}]"
        count = f"{len(items)} " if "prefixItems" in schema else ""
        word, *bounds = _kind(items[-1], whole).split(" ", 1)
        return " ".join([f"list of {count}{word}s", *bounds])
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
    bounds = [f"{sign} {schema[bound]:.10g}" for bound, sign in BOUNDS.items() if bound in schema]
    if "pattern" in schema:
        bounds.append(f"matching `{schema['pattern']}`")
    return " ".join([words.get(kind, "table"), ", ".join(bounds)]).strip()


def _value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if value is None:
        return "none"
    if isinstance(value, float) and 0 < abs(value) < 1e-2:
        return f"{value:.0e}".replace("e-0", "e-")
    return json.dumps(value)


if __name__ == "__main__":
    main(TARGET, render, __doc__)

"""Write docs/support.svg: how far gradients from a cache are from right, and what they cost.

Usage: python docs/make_support.py [--check]

The figures are those of benchmarks/results/support-model.json. With --check nothing is written, and
the exit status is 1 where the file is out of date.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from generated import main

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "support-model.json"
TARGET = Path(__file__).with_name("support.svg")

Case = Mapping[str, Any]

PANELS = {"near": "reverse KL of 0.12 nats", "far": "reverse KL of 0.7 nats"}
"""The panel of each distance between student and teacher, by its title."""

CROWD = (
    "30 student ids by need",
    "31 student ids",
    "top-8 + 22 student ids by need",
    "top-16 + 16 student ids by need",
    "top-16 + 16 student ids",
)
"""Forms that lie so close to others that their names would hide them: dots alone."""

WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 330, 76, 74, 80
BYTES, ERRORS = (30, 150), (-3.0, 0.0)
"""Ends of the axes: bytes of a token, and the logarithm of 1 − cosine."""

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 500" role="img" \
aria-labelledby="title about">
  <title id="title">Gradients from a cache: error and bytes per token</title>
  <desc id="about">Two panels, of a near and of a far student. Each dot is a form of what is kept of
    a token. Across: bytes of a token. Upwards: one minus the cosine between the summed gradient of
    the reverse KL and that of the whole vocabulary.</desc>
  <style>
    text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
    .ground { fill: #ffffff; stroke: #d0d7de }
    .axis { stroke: #8c959f; stroke-width: 1; fill: none }
    .grid { stroke: #d8dee4; stroke-width: 1 }
    .fair { fill: #1d4ed8 }
    .biased { fill: #ffffff; stroke: #b45309; stroke-width: 2 }
    .default { fill: none; stroke: #1d4ed8; stroke-width: 2 }
    .name { font-size: 17px; font-weight: 600; fill: #1f2328 }
    .what { font-size: 13px; fill: #1f2328 }
    .how { font-size: 12.5px; fill: #57606a }
    .right { text-anchor: end }
    .middle { text-anchor: middle }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117; stroke: #3d444d }
      .axis { stroke: #656d76 }
      .grid { stroke: #262c36 }
      .fair { fill: #6ea8fe }
      .biased { fill: #0d1117; stroke: #f0b429 }
      .default { stroke: #6ea8fe }
      .name, .what { fill: #f0f6fc }
      .how { fill: #aab2bd }
    }
  </style>
  <rect class="ground" x="0.5" y="0.5" width="979" height="499" rx="8"/>
"""


def render() -> str:
    """Return the picture."""
    record = json.loads(RESULT.read_text())
    cases = [case for case in record["cases"] if case["loss"] == "reverse_kl"]
    positions = min(case["positions"] for case in cases)
    lines = [HEAD]
    for index, (distance, title) in enumerate(PANELS.items()):
        left = LEFT + index * (WIDTH + GAP)
        lines += _axes(left, f"{title}, {positions:,} tokens")
        here = [c for c in cases if (c["positions"], c["distance"]) == (positions, distance)]
        lines += _points(left, here, record["default"]["form"])
    lines += [
        f'  <circle class="fair" cx="{LEFT}" cy="478" r="5"/>',
        f'  <text class="how" x="{LEFT + 11}" y="482">unbiased: falls with the tokens of a step'
        "</text>",
        f'  <circle class="biased" cx="{LEFT + 300}" cy="478" r="5"/>',
        f'  <text class="how" x="{LEFT + 311}" y="482">biased at so few tokens</text>',
        f'  <circle class="default" cx="{LEFT + 510}" cy="478" r="8"/>',
        f'  <text class="how" x="{LEFT + 524}" y="482">what a run keeps that says nothing</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _across(left: int, size: float) -> float:
    low, high = BYTES
    return left + WIDTH * (min(size, high) - low) / (high - low)


def _up(error: float) -> float:
    low, high = ERRORS
    share = (math.log10(max(error, 1e-9)) - low) / (high - low)
    return TOP + HEIGHT * (1 - min(max(share, 0.0), 1.0))


def _axes(left: int, title: str) -> Iterator[str]:
    yield f'  <text class="name" x="{left}" y="34">{title}</text>'
    yield f'  <text class="how" x="{left}" y="55">1 − cosine, by bytes of a token</text>'
    for power in range(int(ERRORS[0]), int(ERRORS[1]) + 1):
        y = _up(10.0**power)
        yield f'  <path class="grid" d="M{left} {y:.1f}H{left + WIDTH}"/>'
        label = f"{10.0**power:g}"
        yield f'  <text class="how right" x="{left - 8}" y="{y + 4:.1f}">{label}</text>'
    for size in range(BYTES[0], BYTES[1] + 1, 30):
        x = _across(left, size)
        yield f'  <path class="axis" d="M{x:.1f} {TOP + HEIGHT}v5"/>'
        yield f'  <text class="how middle" x="{x:.1f}" y="{TOP + HEIGHT + 21}">{size}</text>'
    yield f'  <path class="axis" d="M{left} {TOP}V{TOP + HEIGHT}H{left + WIDTH}"/>'
    x = left + WIDTH / 2
    yield f'  <text class="how middle" x="{x}" y="{TOP + HEIGHT + 42}">bytes per token</text>'


def _points(left: int, cases: Sequence[Case], default: str) -> Iterator[str]:
    """Yield dots, and their names where two would not meet."""
    taken: list[tuple[float, float, float]] = []
    for case in sorted(cases, key=lambda case: case["form"] != default):
        x, y = _across(left, case["bytes_per_token"]), _up(1 - case["cosine"])
        kind = "fair" if " ids" in case["form"] else "biased"
        yield f'  <circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        if case["form"] == default:
            yield f'  <circle class="default" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
        if case["form"] in CROWD:
            continue
        words = case["form"].replace(" student ids", " ids")
        words = words.replace("top-16 + 16 ids + 64", "16 + 16, 64")
        before = x > left + WIDTH * 0.55
        start = x - 12 - 7 * len(words) if before else x + 12
        end = start + 7 * len(words)
        steps = (0, *(sign * 16 * n for n in range(1, 9) for sign in (-1, 1)))
        label = next(
            y + step
            for step in steps
            if not any(abs(y + step - h) < 15 and start < to and at < end for at, to, h in taken)
        )
        taken.append((start, end, label))
        side, at = ("what right", x - 12) if before else ("what", x + 12)
        yield f'  <text class="{side}" x="{at:.1f}" y="{label + 4:.1f}">{words}</text>'


if __name__ == "__main__":
    main(TARGET, render, __doc__)

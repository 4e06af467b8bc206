"""`opd train --objective-check`: what a round's objective is worth on its own first rows."""

from typing import TYPE_CHECKING

from cli.output import print_json
from cli.terminal import say, say_table
from pipeline.runs.run import Run

if TYPE_CHECKING:
    from pipeline.learner.objective.checked import Checked, FormFigures

TITLES = ("objective and support", "bias", "variance", "N₀", "cosine", "fused − plain", "mass")
ALL_IDS = "of all ids"

LEGEND = (
    "bias: of the mean gradient, as a share of the mean (~: none is seen above that; –: these rows",
    "  do not tell). variance: of a token's gradient, as a multiple of the configured form's.",
    "N₀: tokens whose sum has as much noise as mean. cosine: expected in a step, aim/√(1 + N₀/N).",
    "fused − plain: relative difference of gradients. mass: standard errors between the mass of a",
    "  sample and that of all ids outside the top-k.",
)
MEASURED = "of all ids: expected cosine of a step with the gradient over the whole vocabulary."


def show_objective_check(
    run: Run, round_index: int | None, *, with_teacher: bool, as_json: bool
) -> None:
    """Check the objective of a round, the newest that is scored where none is named, and say it."""
    from pipeline.learner.objective.check import check_objective
    from pipeline.learner.objective.checked import advice

    index = newest_scored(run) if round_index is None else round_index
    found = check_objective(run, index, with_teacher=with_teacher)
    if as_json:
        print_json(
            {
                "stage": "objective-check",
                "run": run.name,
                "round": found.round,
                "rows": found.rows,
                "positions": found.positions,
                "step_tokens": found.step_tokens,
                "forms": [one.fields() for one in found.forms],
                "advice": advice(found),
            }
        )
        return
    _show(found)
    say("", f"Best choice: {advice(found)}.")


def newest_scored(run: Run) -> int:
    """Return the newest round with scores by all teachers; round 0 where there is none."""
    from pipeline.runs.tasks import next_round

    first = next_round(run, run.config.run.rounds)
    whole = first < run.config.run.rounds and all(run.score(first, t) for t in run.config.teachers)
    return first if whole else max(0, first - 1)


def _show(found: "Checked") -> None:
    say(
        f"round {found.round}: {found.positions:,} tokens of {found.rows:,} rows, steps of "
        f"{found.step_tokens:,} tokens; nothing is stored"
    )
    measured = any(one.of_all_ids is not None for one in found.forms)
    cells = [_cells(one, found.forms[0].worth.variance) for one in found.forms]
    if measured:
        for row, one in zip(cells, found.forms, strict=True):
            row.append("–" if one.of_all_ids is None else f"{one.of_all_ids:.4f}")
    say_table((*TITLES, ALL_IDS) if measured else TITLES, cells)
    say(*LEGEND, *([MEASURED] if measured else []))


def _cells(one: "FormFigures", variance: float) -> list[str]:
    mark = "* " if one.form.configured else "  "
    return [
        f"{mark}{one.form.name}",
        _bias(one),
        "–" if not variance else f"{one.worth.variance / variance:.2f}",
        "–" if one.worth.noise is None else f"{one.worth.noise:,.0f}",
        "–" if one.cosine is None else f"{one.cosine:.3f}",
        f"{one.fused_error:.1e}",
        "–" if one.mass_score is None else f"{one.mass_score:+.1f}",
    ]


def _bias(one: "FormFigures") -> str:
    if one.reference is None:
        return "0" if one.form.unbiased else "–"
    if one.worth.bias:
        return f"{one.worth.bias:.1%}"
    return "–" if one.worth.bias_seen is None else f"~{one.worth.bias_seen:.1%}"

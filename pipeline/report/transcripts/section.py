"""The page's part with transcripts: what picks them, and their data."""

from collections.abc import Sequence
from typing import Any

from pipeline.report.markup import Html, data_script, tag
from pipeline.report.transcripts.packing import Pack

HINT = (
    "Colour is the KL of each sampled token, log q − log p: red where the student is surer than "
    "its teacher, blue where the teacher is. Point at a token for what both thought; with the "
    "keyboard, Tab goes to a transcript, arrow keys from token to token, w to its worst ones."
)

ORDERS = (
    ("ten", "the ten worst"),
    ("mean", "all, worst mean first"),
    ("token", "all, worst token first"),
    ("stored", "all, as stored"),
)


def transcript_section(packs: Sequence[tuple[str, Pack, str | None]]) -> Html | None:
    """Return the part, or None where no sequence could be read.

    Args:
        packs: of each run, its name, its transcripts, and why their ids are numbers.
    """
    rows = [{**row, "run": n} for n, (_, one, _) in enumerate(packs) for row in one.rows]
    if not rows:
        return None
    data = {
        "runs": [name for name, _, _ in packs],
        "tops": [{str(key): text for key, text in one.tops.items()} for _, one, _ in packs],
        "rows": rows,
    }
    left = sum(one.left_out for _, one, _ in packs)
    notes = [f"{left} more did not fit on the page."] if left else []
    notes += [f"Ids of {name} stand for text: {why}." for name, _, why in packs if why is not None]
    return tag(
        "section",
        tag("h2", "Transcripts"),
        tag("p", HINT, " ", tag("span", class_="key", role="img", aria_label="blue to red")),
        *(tag("p", note, class_="soft") for note in notes),
        _bar(rows),
        tag(
            "div",
            tag(
                "div",
                tag("p", id="count", class_="soft small", aria_live="polite"),
                tag("div", id="rows", class_="rows"),
                tag("button", "Show more", id="more", type="button", hidden=True),
            ),
            tag("aside", _panel(), id="panel", class_="panel empty", aria_live="polite"),
            class_="split",
        ),
        data_script("transcript-data", data),
        id="transcripts",
    )


def _panel() -> Html:
    return tag("p", "Point at a token, or go to one by keyboard.", class_="soft")


def _bar(rows: Sequence[dict[str, Any]]) -> Html:
    rounds = sorted({row["round"] for row in rows})
    kinds = sorted({row["kind"] for row in rows}, reverse=True)
    return tag(
        "div",
        _pick("Show", "pick-order", ORDERS),
        _pick("Round", "pick-round", [("", "all"), *((str(n), str(n)) for n in rounds)]),
        _pick("Prompts", "pick-kind", [("", "all"), *((kind, kind) for kind in kinds)]),
        tag("label", "With words", tag("input", id="pick-words", type="search", size="14")),
        tag(
            "label",
            tag("input", id="pick-side", type="checkbox"),
            "same prompt side by side",
        ),
        class_="bar",
    )


def _pick(words: str, name: str, choices: Sequence[tuple[str, str]]) -> Html:
    options = [tag("option", label, value=value) for value, label in choices]
    return tag("label", words, tag("select", *options, id=name))

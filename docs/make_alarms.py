"""Write the table of alarms into docs/alarms.md, from the rules themselves.

Usage: python docs/make_alarms.py. A test says where the table is out of date.
"""

from pathlib import Path

from generated import main

from pipeline.runs.alarms.figures import FIGURES
from pipeline.runs.alarms.rules import RULES, Rule

TARGET = Path(__file__).with_name("alarms.md")
BEGIN = "<!-- Written by docs/make_alarms.py from pipeline/runs/alarms/rules.py. -->"
END = "<!-- The table ends here. -->"


def table() -> str:
    """Return the table of all alarms as Markdown."""
    lines = ["| alarm | figure | threshold | what to try |", "|-|-|-|-|"]
    lines += [
        f"| `{rule.name}` | {FIGURES[rule.figure]} | {_threshold(rule)} | {rule.advice} |"
        for rule in RULES
    ]
    return "\n".join(lines)


def render() -> str:
    """Return the page with the table of now."""
    head, rest = TARGET.read_text(encoding="utf-8").split(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def _threshold(rule: Rule) -> str:
    limit = f"{rule.limit:g}"
    words = {
        "above": f"above {limit}",
        "below": f"below {limit}",
        "up by": f"up by {rule.limit:.0%} since the first round",
        "down by": f"down by {rule.limit:.0%} since the first round",
    }[rule.test]
    words += ", and the teachers do not teach it" if rule.unless_taught else ""
    words += f", to more than {rule.at_least:g}" if rule.at_least else ""
    return words + (", in the first round" if rule.only_first else "")


if __name__ == "__main__":
    main(TARGET, render, __doc__)

"""The option that a response to a multiple-choice question chooses. Pure.

Promises: time grows with the text alone. What is asked first: a boxed option, an option after
"answer", a response that is nothing but an option, an option in brackets or at the begin of a line.
"""

import re

LABEL = r"[A-Za-z0-9]"

OPTION = rf"[(\[]?\s{{0,2}}\**({LABEL})\**\s{{0,2}}[)\]]?"

ENDED = r"(?![\w'])"

RULES = (
    re.compile(rf"\\boxed\s?{{\s?(?:\\text\s?{{\s?)?[(]?({LABEL})[)]?\s?}}"),
    re.compile(rf"(?i:answer|choice|option)(?:\s(?:is|would\sbe))?[\s:*]{{0,6}}{OPTION}{ENDED}"),
    re.compile(rf"\A\W{{0,8}}({LABEL})\W{{0,8}}\Z"),
    re.compile(rf"[(\[]({LABEL})[)\]]"),
    re.compile(rf"^[ \t*]{{0,8}}({LABEL})[).:](?=\s|\Z|\*)", re.MULTILINE),
)
"""The last match of the first rule that has one counts."""


def chosen(text: str) -> str | None:
    """Return the option that a text chooses, as a capital letter or digit, or None."""
    for rule in RULES:
        found = rule.findall(text.strip())
        if found:
            return str(found[-1]).upper()
    return None


def same_choice(response: str, reference: str) -> float:
    """Return 1.0 where a response chooses the option that its reference names, else 0.0.

    Raises:
        ValueError: the reference names none.
    """
    label = re.fullmatch(rf"\s*[(\[]?({LABEL})[)\].:]?\s*", reference)
    if label is None:
        raise ValueError("the reference is no option, such as B")
    return float(chosen(response) == label[1].upper())

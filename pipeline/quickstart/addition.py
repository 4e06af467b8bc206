"""The quickstart's task: addition with written-out columns, and everything to learn it from.

`347+589=` is answered column by column from the lowest digit, each as `a b carry-in sum`, then `#`,
the sum and the stop token: `790648133519#936`. A problem is held out by a hash of its operands.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")

VOCABULARY = (*SPECIAL, *"0123456789+=#")

PAD, EOS, BOS = 0, 1, 2

IDS = {text: index for index, text in enumerate(VOCABULARY)}

DIGITS = (2, 4)
"""Fewest and most digits of an operand."""

MAX_PROMPT_TOKENS = 2 * DIGITS[1] + 2

MAX_RESPONSE_TOKENS = 4 * DIGITS[1] + 1 + DIGITS[1] + 1 + 1

Put = Callable[[str, str], str]
"""Writes the right token or another of some choices; returns what was written."""


@dataclass(frozen=True)
class Problem:
    """Two numbers to add."""

    a: int
    b: int

    @property
    def held_out(self) -> bool:
        """Return whether the problem is kept for evaluation, never trained on."""
        return (self.a * 1000003 + self.b) % 10 == 0

    @property
    def prompt(self) -> str:
        """Return the question."""
        return f"{self.a}+{self.b}="

    @property
    def answer(self) -> str:
        """Return what the response must end with, after `#`."""
        return str(self.a + self.b)

    @property
    def response(self) -> str:
        """Return the worked solution, without the stop token."""
        return "".join("".join(c) for c in _columns(self, _copy)) + "#" + self.answer


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """Yield random problems, without end; training and held-out ones are disjoint."""
    source = random.Random(seed)
    while True:
        a, b = (_operand(source) for _ in range(2))
        problem = Problem(a, b)
        if problem.held_out == held_out:
            yield problem


def distinct(count: int, seed: int, *, held_out: bool) -> list[Problem]:
    """Return that many different problems."""
    found: dict[Problem, None] = {}
    for problem in problems(seed, held_out=held_out):
        found[problem] = None
        if len(found) == count:
            break
    return list(found)


def encode(text: str) -> list[int]:
    """Return the ids of a text of digits and signs."""
    return [IDS[character] for character in text]


def with_mistakes(problem: Problem, source: random.Random, share: float) -> tuple[str, str]:
    """Return a response in which a share of tokens is wrong, and the right next token at each.

    What follows a mistake goes on from what is written, so that a teacher trained on it knows what
    to do after a student's wrong step.
    """
    written: list[str] = []
    targets: list[str] = []

    def put(right: str, choices: str) -> str:
        targets.append(right)
        written.append(source.choice(choices) if source.random() < share else right)
        return written[-1]

    columns = list(_columns(problem, put))
    put("#", "#")
    digits = [column[3] for column in reversed(columns)]
    carry = int(sum(int(x) for x in columns[-1][:3]) >= 10)
    for digit in (["1"] if carry else []) + digits:
        put(digit, "0123456789")
    return "".join(written), "".join(targets)


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer with one token per character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocab=IDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    make: Any = PreTrainedTokenizerFast
    return make(  # type: ignore[no-any-return] # transformers does not type its tokenizers
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
    )


def _operand(source: random.Random) -> int:
    digits = source.randint(*DIGITS)
    return source.randrange(10 ** (digits - 1), 10**digits)


def _copy(right: str, choices: str) -> str:
    return right


def _columns(
    problem: Problem, put: Callable[[str, str], str]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield `a b carry-in sum` of each column, each written through `put`."""
    a, b = str(problem.a)[::-1], str(problem.b)[::-1]
    carry = 0
    for column in range(max(len(a), len(b))):
        x = put(a[column] if column < len(a) else "0", "0123456789")
        y = put(b[column] if column < len(b) else "0", "0123456789")
        k = put(str(carry), "01")
        total = int(x) + int(y) + int(k)
        s = put(str(total % 10), "0123456789")
        carry = int(total >= 10)
        yield x, y, k, s

"""Grades of evaluations by graders that are made of libraries.

Promises: a response on which the library runs out of time or memory, or dies, is wrong, and no
other row suffers; a reference that it cannot read is told.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.rewards.graders import Grade, Response, open_grader
from pipeline.rewards.location import Grader
from pipeline.rewards.pool import open_judge
from schemas.config.evaluation import RewardSection
from schemas.errors import ConfigError
from schemas.foreign import excerpt

WRONG = ("timed_out", "memory", "died")
"""Kinds of faults that a response itself is to blame for."""


@contextmanager
def open_evaluator(grader: Grader, *, timeout_s: float) -> Iterator[Grade]:
    """Give what grades the responses of an evaluation, for the length of a block.

    Args:
        grader: which one.
        timeout_s: seconds that it has for a response.

    Raises:
        ConfigError: it cannot be loaded, a reference cannot be read, or a grader of the user's own
            fails on a response.
    """
    if not grader.of_library:
        with open_grader(grader, timeout_s=timeout_s) as grade:
            yield grade
        return
    section = RewardSection(grader=grader.name, timeout_s=timeout_s)
    with open_judge(grader, section) as judge:

        def graded(responses: Sequence[Response]) -> list[float]:
            found = []
            for one, verdict in zip(responses, judge(responses), strict=True):
                if verdict.reward is None and verdict.fault not in WRONG:
                    where = f"prompt {excerpt(one.prompt_id, 100)!r}"
                    raise ConfigError(
                        f"{grader.choice} cannot grade {where}: {verdict.words}. Correct its "
                        "'reference' in prompts.eval"
                    )
                found.append(verdict.reward or 0.0)
            return found

        yield graded

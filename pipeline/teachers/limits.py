"""What a model of a run must hold: the longest sequence, and no id that the student lacks."""

from typing import Any

from pipeline.runs.run import Run
from schemas.errors import ConfigError, IdentityError


def longest(run: Run) -> int:
    """Return the most tokens of a prompt and its response."""
    return run.config.prompts.max_tokens + run.config.rollout.max_new_tokens


def check_context(run: Run, settings: Any, *, label: str, scores: bool) -> int:
    """Make sure that a model holds the longest sequence of a run; return the tokens that takes.

    Args:
        run: the run.
        settings: the model's `config.json`.
        label: what messages call the model.
        scores: whether it scores, which takes a token more than sampling.

    Raises:
        ConfigError: it does not.
    """
    needed = longest(run) + int(scores)
    held = getattr(settings, "max_position_embeddings", None)
    if held is not None and held < needed:
        raise ConfigError(
            f"{label} holds {held} tokens, but prompts.max_tokens + rollout.max_new_tokens"
            f"{' + 1' if scores else ''} = {needed}: lower one of them"
        )
    return needed


def check_vocabulary(teacher: str, used: int, student: int) -> None:
    """Make sure that the student has every id of a teacher's tokenizer.

    Raises:
        IdentityError: it lacks some.
    """
    if used > student:
        raise IdentityError(
            f"the tokenizer of teachers.{teacher} has {used} ids, but the student's vocabulary has "
            f"{student}: the student cannot learn the rest"
        )


def check_k(k: int, vocab_size: int) -> None:
    """Make sure that the ids that teacher and student share are as many as a top-k.

    Raises:
        ConfigError: they are fewer.
    """
    if k > vocab_size:
        raise ConfigError(f"score.k = {k}, but the vocabulary has {vocab_size} ids: lower it")

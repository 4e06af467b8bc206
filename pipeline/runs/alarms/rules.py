"""The alarms, as data: which figure each of them reads, its threshold, its words, what to try.

docs/alarms.md is written from this table. Pure.
"""

from dataclasses import dataclass
from typing import Literal

Test = Literal["above", "below", "up by", "down by"]
"""How a figure is held against the limit; `up by` and `down by` are shares of its first value."""

Severity = Literal["wrong", "look"]
"""`wrong`: results cannot be trusted; `look`: it may be meant."""


@dataclass(frozen=True)
class Rule:
    """One alarm."""

    name: str
    figure: str
    """One of `figures.FIGURES`."""
    test: Test
    limit: float
    words: str
    """A sentence without its end; `{now}` and `{start}` are the figure and its first value."""
    advice: str
    form: str = ".2f"
    """How the figure is written."""
    severity: Severity = "look"
    at_least: float = 0.0
    """What the figure must be beside, for an alarm of `up by`: less is too little to matter."""
    unless_taught: bool = False
    """Whether it is meant where the teachers ask for it: where ends of responses were more or less
    likely to them at first, or the student has come closer to them."""
    only_first: bool = False
    """Whether only the first round tells; later, the same may be the aim."""


LENGTH = (
    "Read responses of both rounds side by side in `opd report`: loops and padding lengthen them, "
    "an end that comes too early shortens them. Lower train.learning_rate, or leave the end token "
    "its weight (loss.weights)"
)
TEMPLATE = (
    "Compare what both models are given with `opd prompts`: the chat template, its generation "
    "prompt and chat_template_kwargs must be those that the teacher was trained with"
)
AWAY = (
    "Lower train.learning_rate, raise train.warmup_steps, or train fewer steps a round, under "
    "another run.name"
)

RULES = (
    Rule(
        "length_up",
        "response_tokens",
        "up by",
        0.30,
        "Responses grew from {start} tokens to {now}, and the student came little closer to its "
        "teachers",
        LENGTH,
        ".1f",
        unless_taught=True,
    ),
    Rule(
        "length_down",
        "response_tokens",
        "down by",
        0.30,
        "Responses shrank from {start} tokens to {now}, and the student came little closer to its "
        "teachers",
        LENGTH,
        ".1f",
        unless_taught=True,
    ),
    Rule(
        "cut_off_rising",
        "cut_off",
        "up by",
        1.0,
        "The share of responses that were cut off at rollout.max_new_tokens rose from {start} to "
        "{now}",
        "Read the longest ones in `opd report`: where they go round in circles, lower "
        "train.learning_rate; where the teachers say as much, raise rollout.max_new_tokens",
        ".0%",
        at_least=0.15,
    ),
    Rule(
        "cut_off",
        "cut_off",
        "above",
        0.50,
        "{now} of the responses were cut off at rollout.max_new_tokens",
        "Raise rollout.max_new_tokens; or see why responses do not end: another end token than the "
        "student's, a template without one, or loops. Where fixed lengths are meant, let it be",
        ".0%",
    ),
    Rule(
        "end_token_lost",
        "end_gap",
        "above",
        3.5,
        "The teacher gives the token with which responses end {now} nats less than the student",
        "Student and teacher end their turns with different tokens: compare eos_token, the end of "
        "the chat template and generation_config.json of both, and rollout.stop_token_ids",
        severity="wrong",
    ),
    Rule(
        "template_strange",
        "opening_gap",
        "above",
        3.0,
        "The teacher would begin nearly all responses alike, but not as the student does: first "
        "tokens are {now} nats less likely to it than the rest",
        TEMPLATE,
        severity="wrong",
    ),
    Rule(
        "mass_falling",
        "student_mass",
        "down by",
        0.10,
        "The student's mass on the ids kept of the teacher fell from {start} to {now}",
        "The loss sees less and less of the student: raise score.k, or use a loss with a tail or "
        "with rollout.candidates",
        ".3f",
    ),
    Rule(
        "mass_low",
        "teacher_mass",
        "below",
        0.50,
        "The ids kept of the teacher hold {now} of its mass",
        "Raise score.k or score.top_p, or keep a sample of the rest (score.sample)",
        ".3f",
    ),
    Rule(
        "overlap_falling",
        "overlap",
        "down by",
        0.20,
        "The share of the student's likeliest ids among the teacher's fell from {start} to {now}",
        AWAY,
        ".1%",
    ),
    Rule(
        "entropy_collapse",
        "entropy_share",
        "below",
        0.05,
        "The student is sure where the teacher is not with it: its entropy is {now} of what the "
        "teacher needs for its samples",
        "It says one thing only: lower train.learning_rate, or mix some forward KL into the loss "
        "(loss.kind)",
        ".0%",
    ),
    Rule(
        "rollout_kl",
        "rollout_kl",
        "up by",
        4.0,
        "What sampled is {now} nats a token (rollout_kl) from the student that is trained, where "
        "its engine showed {start} at first",
        "The engine samples with other weights than the checkpoint's, or rounds differently: "
        "restart it, look at `opd doctor --drift`, and at rollout.engine's settings",
        ".2g",
        "wrong",
        at_least=2e-3,
    ),
    Rule(
        "sampling_not_as_told",
        "surprise",
        "above",
        0.15,
        "Sampled tokens are {now} nats likelier or less likely than the student's entropy says",
        "They were not drawn as configured: look for a temperature, top_p, penalty or logits "
        "processor in the engine's or the model's generation_config.json",
        severity="wrong",
    ),
    Rule(
        "stale",
        "stale_share",
        "above",
        0.20,
        "{now} of the rows were left out, for an older student sampled them",
        "Raise train.max_staleness, or sample anew before training",
        ".0%",
    ),
    Rule(
        "tail_clamped",
        "tail_clamped",
        "above",
        0.10,
        "At {now} of the tokens the teacher's tail was clamped: its kept ids sum to 1 or more",
        "Use a codec that rounds less (score.codec), or another engine than a server",
        ".0%",
    ),
    Rule(
        "floored",
        "floored",
        "above",
        0.50,
        "At {now} of the tokens the teacher's log-probability lies below its floor",
        "Lower loss.teacher_logprob_floor, or see why the teacher finds the student's ids "
        "impossible: another vocabulary, template or prompt",
        ".0%",
    ),
    Rule(
        "teacher_is_student",
        "gap",
        "below",
        0.02,
        "Teacher and student differ by {now} nats a token (root of the mean square): the teacher "
        "is the student",
        "Look at teachers.NAME.model: there is nothing to learn from the same weights",
        ".2g",
        "wrong",
        only_first=True,
    ),
    Rule(
        "scores_shuffled",
        "in_place",
        "below",
        0.90,
        "Only {now} of the sampled tokens stand among the teacher's ids where their rank says so: "
        "scores belong to other sequences",
        "Score the round again with `opd score --only-invalid`, and look at the engine or server "
        "that scored: it mixed up rows",
        ".0%",
        "wrong",
    ),
    Rule(
        "gradient_spike",
        "gradient_spike",
        "above",
        10.0,
        "The gradient norm of a step was {now} times the median",
        AWAY + ", or lower train.max_grad_norm",
        ".0f",
    ),
    Rule(
        "left_its_samples",
        "moved",
        "above",
        1.0,
        "Within the round the student moved {now} nats a token (rollout_kl) away from what it had "
        "sampled",
        AWAY,
    ),
    Rule(
        "further_away",
        "reverse_kl",
        "up by",
        0.20,
        "The reverse KL to the teacher rose from {start} to {now} nats a token",
        AWAY,
        ".3f",
        at_least=0.05,
    ),
    Rule(
        "steps_skipped",
        "skipped_share",
        "above",
        0.0,
        "{now} of the optimizer steps were skipped, for their loss or gradient was no number",
        "Lower train.learning_rate or train.max_grad_norm under another run.name",
        ".0%",
    ),
    Rule(
        "prompts_cut",
        "prompts_at_longest",
        "above",
        0.30,
        "{now} of the prompts are exactly as long as the longest: they look cut",
        "Opd cuts none: look at what made the file of prompts.train",
        ".0%",
    ),
    Rule(
        "candidates_dropped",
        "candidates_share",
        "below",
        0.99,
        "The student's own ids (rollout.candidates) are stored at {now} of the tokens",
        "The engine that sampled gave none: look at its version and its limit of log-probabilities",
        ".0%",
        "wrong",
    ),
    Rule(
        "one_domain",
        "domain_share",
        "above",
        0.70,
        "One domain of the prompts carries {now} of what pulls the student to its teachers",
        "Set loss.weights.domain, give the domain's prompts less weight, or mix the file anew",
        ".0%",
    ),
)

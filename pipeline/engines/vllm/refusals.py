"""Why vLLM cannot run a model, in words that a person can act on. Pure."""

import re

ADVICE = (
    "This release of vLLM does not know the architecture, its sizes or its settings, or has no "
    "code for them on this device: set the stage's engine to 'hf', or choose another model"
)

NOISE = (
    re.compile(r"^\d+ validation errors? for \w+\s+(?:Value error, )?"),
    re.compile(r" \[type=value_error.*", re.DOTALL),
    re.compile(r" Supported architectures: .*", re.DOTALL),
)
"""Parts of vLLM's words that say nothing of the model."""


def cannot_run(location: str, reason: str) -> str:
    """Return what is said of a model that vLLM does not start with.

    Args:
        location: of the model.
        reason: what vLLM said.
    """
    for noise in NOISE:
        reason = noise.sub("", reason)
    return f"vLLM cannot run the model {location}: {reason.rstrip('. ')}. {ADVICE}"

"""What the engines of a run start with: the same in a trial and in the stage itself."""

from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from pipeline.runs.run import Run
from pipeline.teachers.limits import longest
from schemas.config.engines import EngineSection


def sampling_start(
    run: Run, section: EngineSection, source: ModelSource, *, dtype: str, kept: bool
) -> Start:
    """Return what an engine that samples starts with.

    Args:
        run: the run.
        section: of the stage.
        source: the model.
        dtype: number format.
        kept: whether the engine may stay for other stages, and must hold what each may ask.
    """
    kept = kept and section.vllm.keep_between_stages
    section = section if kept else section.for_one_stage
    limit = max(response_limit(run, one) for one in (_keeping_sections(run) if kept else [section]))
    return Start(
        source,
        section,
        dtype=dtype,
        use="sample",
        max_tokens=run.config.prompts.max_tokens + limit,
        reads_text=bool(run.config.rollout.stop_strings),
    )


def scoring_start(run: Run, source: ModelSource, dtype: str) -> Start:
    """Return what the engine of the score stage starts with, for a model in a number format."""
    return Start(source, run.config.score, dtype=dtype, use="score", max_tokens=longest(run))


def response_limit(run: Run, section: EngineSection) -> int:
    """Return the most tokens of a response; those of the rollout where a section has none."""
    return section.response_limit or run.config.rollout.max_new_tokens


def _keeping_sections(run: Run) -> list[EngineSection]:
    """Return the sections whose stages share one engine."""
    sections = [run.config.rollout, run.config.eval]
    return [one for one in sections if one is not None and one.vllm.keep_between_stages]

"""What memory a run needs, by its configuration and its models' own, beside what is here."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.models.source import find_model, local_folder
from pipeline.runs.run import Run
from pipeline.sizing.learning import Lengths
from pipeline.sizing.machine import Machine
from pipeline.sizing.shape import Shape, shape_of
from pipeline.sizing.stages import Need, needs
from schemas.config.models import StudentSection, TeacherSection
from schemas.errors import OpdError
from schemas.keys import STUDENT


@dataclass(frozen=True)
class Memory:
    """Needs of the stages of a run."""

    machine: str
    """In words."""
    needs: tuple[Need, ...]
    unknown: dict[str, str]
    """Model → why nothing is known of it."""

    @property
    def tightest(self) -> Need | None:
        """Return the need that takes the largest share of what there is."""
        known = [need for need in self.needs if need.share is not None]
        return max(known, key=lambda need: need.share or 0.0, default=None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what will not fit, in words."""
        return tuple(_warned(self.needs))


def memory_of(run: Run, machine: Machine) -> Memory:
    """Return what a run needs of memory; a model that is not here is named, and ends nothing."""
    shapes, unknown = dict[str, Shape](), dict[str, str]()
    sections: dict[str, StudentSection | TeacherSection] = {
        STUDENT: run.config.student,
        **run.config.teachers,
    }
    for name, section in sections.items():
        key = STUDENT if name == STUDENT else f"teachers.{name}"
        try:
            source = find_model(run.place, section, key)
            if local_folder(source.whole) is None:
                unknown[key] = f"{source.location} was never downloaded to this machine"
                continue
            shapes[name] = shape_of(source)
        except OpdError as error:
            unknown[key] = str(error).splitlines()[0]
    rollout = run.config.rollout
    rows = rollout.prompts_per_unit * rollout.samples_per_prompt
    lengths = Lengths(run.config.prompts.max_tokens, rollout.max_new_tokens, rows)
    found = needs(run.config, shapes, machine, lengths=lengths)
    return Memory(machine.words, tuple(found), unknown)


def _warned(found: tuple[Need, ...]) -> Iterator[str]:
    for need in found:
        whose = "each GPU" if need.memory == "GPU" else "this machine"
        if need.share is not None and need.share > 1.0:
            yield f"{need.stage} will not fit: {_words(need)} of {whose}. To fit, {need.advice}"
        elif need.share is None:
            yield f"{need.stage} needs a GPU, and none was found here"


def _words(need: Need) -> str:
    size = 2.0**30
    assert need.held is not None
    return f"it needs {need.bytes / size:,.1f} GiB, and there are {need.held / size:,.1f}"

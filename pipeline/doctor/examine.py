"""What `opd doctor` looks at before GPU hours are spent: each thing alone, none ends the others.

Promises: nothing of a run is written but the probe of its store, which is deleted, and a drift
record where one is asked for.
"""

from collections.abc import Iterator
from functools import partial

from pipeline.admission.findings import Finding, looked
from pipeline.admission.models import Candidate, look_at_student, look_at_teacher
from pipeline.admission.settings import (
    look_at_engines,
    look_at_grader,
    look_at_learner,
    look_at_loss,
    look_at_prompts,
    look_at_references,
    look_at_sampling,
)
from pipeline.engines.processes import find_orphans
from pipeline.runs.run import Run
from pipeline.runs.software import software_versions
from pipeline.sizing.parts import GIB
from pipeline.store.writer import require_safe_writes

FREE_SHARE = 0.8
"""Share of a GPU's memory that should be free before anything starts."""


def examine(run: Run) -> Iterator[Finding]:
    """Yield what is found without loading a model's weights."""
    yield looked("versions", _versions)
    yield looked("store", lambda: _store(run))
    yield looked("engines", lambda: look_at_engines(run))
    yield looked("learner", lambda: look_at_learner(run))
    yield looked("orphans", _orphans)
    yield looked("gpus", _gpus)
    one = Candidate(run)
    student = looked("student", lambda: look_at_student(one))
    yield looked("prompts", lambda: look_at_prompts(one, read=student.state != "failed"))
    yield looked("grader", lambda: look_at_grader(run))
    yield looked("loss", lambda: look_at_loss(run))
    yield student
    if student.state != "failed":
        yield looked("sampling", lambda: look_at_sampling(one))
        yield looked("references", lambda: look_at_references(one))
    for name in run.config.teachers:
        yield looked(f"teacher {name}", partial(look_at_teacher, one, name, whole=True))


def _versions() -> Finding:
    found = software_versions()
    return Finding("versions", "ok", ", ".join(f"{n} {v}" for n, v in found.items()), found)


def _store(run: Run) -> Finding:
    storage = run.storage
    if storage.single_writer:
        return Finding(
            "store",
            "warning",
            f"{storage.root} is not asked whether it honours create-only writes, for "
            "storage.single_writer is set: make sure that only one opd process writes to it at a "
            "time",
        )
    require_safe_writes(storage)
    return Finding("store", "ok", f"{storage.root} honours create-only writes")


def _orphans() -> Finding:
    found = find_orphans()
    if not found:
        return Finding("orphans", "ok", "no engine has outlived its stage")
    each = [f"{o.pid} ({o.command}, {o.memory_bytes / GIB:.1f} GiB, of {o.owner})" for o in found]
    pids = [orphan.pid for orphan in found]
    return Finding(
        "orphans",
        "warning",
        f"engine processes whose stage is gone: {'; '.join(each)}. End them with: "
        f"kill -9 {' '.join(map(str, pids))}",
        {"pids": pids},
    )


def _gpus() -> Finding:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return Finding("gpus", "ok", "none: models run on the CPU", {"count": 0})
    memory = [torch.cuda.mem_get_info(index) for index in range(count)]
    words = [
        f"{index}: {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        for index, (free, total) in enumerate(memory)
    ]
    taken = any(free < FREE_SHARE * total for free, total in memory)
    figures = {"count": count, "free_bytes": [free for free, _ in memory]}
    return Finding("gpus", "warning" if taken else "ok", "; ".join(words), figures)

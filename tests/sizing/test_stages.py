"""What a run needs of memory, by its configuration: pure arithmetic on the sizes of models."""

from dataclasses import replace

import pytest

from pipeline.sizing.learning import Lengths, learning_bytes
from pipeline.sizing.machine import Machine
from pipeline.sizing.parts import GIB, total
from pipeline.sizing.shape import Shape
from pipeline.sizing.stages import Need, needs
from pipeline.store.storage import Storage
from tests.support.minimal import minimal_run

# Qwen3-8B and Qwen3-32B, as their config.json have them
STUDENT = Shape(8_190_735_360, 36, 4096, 12288, 6144, 2 * 36 * 1024, 151_936, 3_500_000)
TEACHER = Shape(32_762_123_264, 64, 5120, 25600, 10240, 2 * 64 * 1024, 151_936, 9_000_000)
NODE = Machine(cores=64, memory_bytes=1024 * GIB, gpus=(80 * GIB,) * 8, has_vllm=True)
LENGTHS = Lengths(512, 2048, 16)
LOW = ("student.dtype=bfloat16", "teachers.main.dtype=bfloat16", "train.dtype=bfloat16")


def of(*overrides: str, machine: Machine = NODE) -> dict[str, Need]:
    """Return needs by stage and memory."""
    run = minimal_run(Storage("memory://sizing"), *LOW, *overrides)
    shapes = {"student": STUDENT, "main": TEACHER}
    found = needs(run.config, shapes, machine, lengths=LENGTHS)
    return {f"{need.stage} {need.memory}": need for need in found}


def test_what_learns_is_split_as_zero_splits_it() -> None:
    whole = [total(learning_bytes(10**9, processes=8, low=False, stage=n)) for n in range(4)]
    assert whole == sorted(whole, reverse=True)
    assert whole[0] == 16 * 10**9 and whole[3] == pytest.approx(20 * 10**9 / 8)
    # below stage 2 bfloat16 is not summed well, so it is never computed there
    low = [total(learning_bytes(10**9, processes=8, stage=n)) for n in range(3)]
    assert len(set(low)) == 1 and low[0] == (2 + 16 / 8) * 10**9


def test_each_way_to_lower_memory_lowers_it() -> None:
    plain = of()["train GPU"].bytes
    for way in (
        "train.activation_checkpointing=true",
        "train.micro_batch_tokens=1024",
        "train.num_processes=8",
        'train.lora={rank=16,alpha=32.0,target_modules="all-linear"}',
    ):
        assert of(way)["train GPU"].bytes < plain, way
    many = ("train.num_processes=8", "train.zero_stage=2")
    offloaded = of(*many, "train.offload_optimizer=true")
    assert offloaded["train GPU"].bytes < of(*many)["train GPU"].bytes
    assert offloaded["train CPU"].bytes > of(*many)["train CPU"].bytes
    fewer = of("train.shuffle_shards=1")["train CPU"].parts["shards"]
    assert 16 * fewer == of()["train CPU"].parts["shards"]


def test_a_larger_batch_needs_more_and_a_split_teacher_less_of_each_gpu() -> None:
    assert of("score.batch_tokens=65536")["score main GPU"].bytes > of()["score main GPU"].bytes
    vllm = ("score.engine=vllm", "score.vllm.tensor_parallel_size=2")
    split = of(*vllm)["score main GPU"]
    assert split.parts["weights"] == TEACHER.parameters
    assert split.held == int(0.9 * 80 * GIB) and "of the longest sequences at once" in split.note
    one = of("rollout.engine=vllm", "rollout.max_new_tokens=2048")["rollout GPU"]
    each = one.parts["keys and values"]
    left = int(0.9 * 80 * GIB) - one.bytes + each
    assert one.note == f"{left // each} of the longest sequences at once" and left // each > 100


def test_what_runs_elsewhere_and_what_is_not_there_is_no_need_or_has_no_share() -> None:
    elsewhere = ("score.engine=server", 'score.server.urls=["http://10.0.0.5:8000"]')
    assert "score main GPU" not in of(*elsewhere)
    laptop = replace(NODE, gpus=(), memory_bytes=16 * GIB)
    found = of("score.device=cuda", machine=laptop)
    assert found["score main GPU"].share is None
    assert found["train CPU"].share is not None and found["train CPU"].share > 1.0


def test_a_command_that_keeps_models_on_a_cpu_holds_them_all() -> None:
    laptop = replace(NODE, gpus=())
    kept = of(machine=laptop)["opd run CPU"]
    assert kept.bytes == of(machine=laptop)["train CPU"].bytes + 2 * TEACHER.parameters
    assert "opd run CPU" not in of("run.keep_models=false", machine=laptop)
    assert "opd run CPU" not in of()

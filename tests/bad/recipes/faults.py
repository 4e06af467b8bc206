"""Stores and places that cannot be used."""

import os
import shutil
import socket
from pathlib import Path


def root_is_a_file(folder: Path) -> None:
    (folder / "store").write_text("not a folder")


def root_is_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "store")


def root_leads_to_itself(folder: Path) -> None:
    (folder / "store").symlink_to("store")


def run_folder_is_a_file(folder: Path) -> None:
    (folder / "store" / "runs").mkdir(parents=True)
    (folder / "store" / "runs" / "tiny").write_text("not a folder")


def commits_are_a_file(folder: Path) -> None:
    place = folder / "store/runs/tiny/rounds/0000/rollout"
    place.mkdir(parents=True)
    (place / "commits").write_text("not a folder")


def run_record_is_a_folder(folder: Path) -> None:
    (folder / "store/runs/tiny/run.json").mkdir(parents=True)


def run_record_is_a_pipe(folder: Path) -> None:
    (folder / "store/runs/tiny").mkdir(parents=True)
    os.mkfifo(folder / "store/runs/tiny/run.json")


def run_record_is_a_socket(folder: Path) -> None:
    (folder / "store/runs/tiny").mkdir(parents=True)
    here = os.getcwd()
    os.chdir(folder / "store/runs/tiny")  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("run.json")
    finally:
        os.chdir(here)


def run_record_leads_to_itself(folder: Path) -> None:
    (folder / "store/runs/tiny").mkdir(parents=True)
    (folder / "store/runs/tiny/run.json").symlink_to("run.json")


def run_record_is_empty(folder: Path) -> None:
    (folder / "store/runs/tiny").mkdir(parents=True)
    (folder / "store/runs/tiny/run.json").write_bytes(b"")


def manifest_is_a_pipe(folder: Path) -> None:
    path = folder / "store/runs/tiny/rounds/0000/rollout/manifest.json"
    path.unlink()
    os.mkfifo(path)


def shard_is_a_folder(folder: Path) -> None:
    shard = min((folder / "store/rollouts").glob("*.parquet"))
    shard.unlink()
    shard.mkdir()


def shard_is_half(folder: Path) -> None:
    for shard in (folder / "store/rollouts").glob("*.parquet"):
        data = shard.read_bytes()
        shard.unlink()
        shard.write_bytes(data[: len(data) // 2])


def temporary_folder_is_a_file(folder: Path) -> None:
    (folder / "tmp").write_text("not a folder")


def config_is_a_folder(folder: Path) -> None:
    (folder / "run.toml").unlink()
    (folder / "run.toml").mkdir()


def config_leads_to_itself(folder: Path) -> None:
    (folder / "run.toml").unlink()
    (folder / "run.toml").symlink_to("run.toml")


def prompts_are_a_folder(folder: Path) -> None:
    (folder / "prompts.jsonl").unlink()
    (folder / "prompts.jsonl").mkdir()


def prompts_lead_to_themselves(folder: Path) -> None:
    (folder / "prompts.jsonl").unlink()
    (folder / "prompts.jsonl").symlink_to("prompts.jsonl")


def model_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder / "student")
    (folder / "student").write_text("not a folder")


def model_leads_to_itself(folder: Path) -> None:
    shutil.rmtree(folder / "student")
    (folder / "student").symlink_to("student")


def shards_unreadable_index(folder: Path) -> None:
    for index in (folder / "store/cache").glob("*/index/new"):
        shutil.rmtree(index)
        index.write_text("not a folder")


def demo_is_a_file(folder: Path) -> None:
    (folder / "demo").write_text("not a folder")

"""Students whose tokenizers come with code, or that name no end."""

import json
from pathlib import Path
from typing import Any

CODE = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def change(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    words = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in words.items() if value is not None}))


def own_tokenizer(folder: Path) -> None:
    lost_code(folder)
    (folder / "student" / "own.py").write_text(CODE)


def lost_code(folder: Path) -> None:
    own = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    path = folder / "student" / "tokenizer_config.json"
    change(path, tokenizer_class="OwnTokenizer", auto_map=own)


def broken_code(folder: Path) -> None:
    lost_code(folder)
    (folder / "student" / "own.py").write_text("raise KeyError('no such thing')\n")


def endless(folder: Path) -> None:
    student = folder / "student"
    change(student / "config.json", eos_token_id=None)
    change(student / "tokenizer_config.json", eos_token=None)
    for name in ("generation_config.json", "special_tokens_map.json"):
        (student / name).unlink(missing_ok=True)


def end_in_config(folder: Path) -> None:
    endless(folder)
    change(folder / "student" / "config.json", eos_token_id=2)

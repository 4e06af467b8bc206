"""Chats become text by the tokenizer's chat template, held against what the record says.

Promises: what a template leaves out, adds or begins anew is no prompt but a `BadRecord`: a second
answer after the first, tools or a message that it does not read, an end before the answer.
"""

import difflib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.prompts.chats import Chat, Objects
from pipeline.prompts.values import BadRecord
from schemas.config.prompts import PromptsSection
from schemas.errors import ConfigError
from schemas.foreign import excerpt, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)
"""What a template's own code raises for messages that it does not expect."""

ANSWERING = ("assistant", "model", "gpt", "bot", "ai")
"""Roles of the one who answers."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that a template need not name."""

MOST_FORMS = 4096
"""Forms of chats that are remembered at once."""

NAME = re.compile(r"[A-Za-z_]\w*")

TODAY = "strftime_now"
"""What a template calls to write the date of today."""


class ChatWriter:
    """Writes chats by a tokenizer's template; looks once at what that does with a form of chat."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", section: PromptsSection) -> None:
        """Take the tokenizer and the options of `[prompts]`.

        Raises:
            ConfigError: a variable of the template is an option of the tokenizer's call.
        """
        self._tokenizer, self._answered = tokenizer, section.answered
        self._variables = section.chat_template_kwargs
        options = inspect.signature(tokenizer.apply_chat_template).parameters
        self._options = set(options) - {"chat_template", "kwargs"}
        self._source = template_source(tokenizer)
        self._judged: dict[str, BadRecord | None] = {}
        if taken := self._taken(self._variables):
            raise ConfigError(f"prompts.chat_template_kwargs: {taken}")

    def write(self, chat: Chat) -> str:
        """Return the text of a chat, with the start of the answer.

        Raises:
            BadRecord: the text would say something else than the chat.
            ConfigError: there is no template, or it does not know a variable that is set.
        """
        self._require_template()
        if taken := self._taken(chat.variables):
            raise BadRecord("bad_messages", f"chat_template_kwargs: {taken}")
        chat = replace(chat, messages=self._asked(chat.messages))
        text = self._render(chat)
        self._check_roles(chat.messages)
        self._check_calls(chat, text)
        form = _form(chat)
        if len(self._judged) > MOST_FORMS:
            self._judged.clear()
        if form not in self._judged:
            self._judged[form] = self._judge(chat)
        if problem := self._judged[form]:
            raise BadRecord(problem.reason, str(problem))
        self._check_end(chat, text)
        return text

    def _require_template(self) -> None:
        if not self._tokenizer.chat_template:
            raise ConfigError(
                "the prompts hold 'messages', and the student's tokenizer has no chat template: "
                "give 'prompt' text instead, or add a chat_template.jinja to the student's folder"
            )
        known = set(NAME.findall(self._source))
        for name in self._variables:
            if known and name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
                hint = f"did you mean {close[0]!r}?" if close else "remove it"
                raise ConfigError(
                    f"prompts.chat_template_kwargs: the student's chat template has no variable "
                    f"{name!r}; {hint}"
                )

    def _taken(self, variables: dict[str, Any]) -> str | None:
        """Return what is wrong with variables that are no variables; None where nothing is."""
        taken = sorted(self._options.intersection(variables))
        if not taken:
            return None
        return (
            f"{taken[0]!r} is an option of the tokenizer's call, which opd sets, and no variable "
            "of the chat template; remove it"
        )

    def _asked(self, messages: Objects) -> Objects:
        """Return the messages that the answer follows, as `prompts.answered` says."""
        if messages[-1]["role"] not in ANSWERING or self._answered == "continue":
            return messages
        if self._answered == "refuse":
            raise BadRecord(
                "answered",
                f"the chat ends with a message of {messages[-1]['role']!r}, the answer: set "
                'prompts.answered = "drop" to leave it off, or "continue" to go on with it',
            )
        kept = [place for place, turn in enumerate(messages) if turn["role"] not in ANSWERING]
        if not kept:
            raise BadRecord("empty", "nothing is left of the chat without its answers")
        return messages[: kept[-1] + 1]

    def _continues(self, chat: Chat) -> bool:
        return chat.messages[-1]["role"] in ANSWERING

    def has_own_code(self) -> bool:
        """Return whether code of the tokenizer's own, and no template, makes ids of chats."""
        from transformers import PreTrainedTokenizerBase

        ours = type(self._tokenizer).apply_chat_template
        return ours is not PreTrainedTokenizerBase.apply_chat_template

    def ids(self, chat: Chat) -> list[int]:
        """Return the ids that the tokenizer itself makes of a chat.

        Raises:
            BadRecord: it refuses the chat.
        """
        found = self._apply(replace(chat, messages=self._asked(chat.messages)), tokenize=True)
        ids = found["input_ids"] if hasattr(found, "keys") else found
        return [int(i) for i in ids]

    def _render(self, chat: Chat) -> str:
        return str(self._apply(chat, tokenize=False))

    def _apply(self, chat: Chat, *, tokenize: bool) -> Any:
        from jinja2 import TemplateError

        goes_on = self._continues(chat)
        if goes_on and chat.messages[-1].get("tool_calls"):
            words = "the chat ends with a call of a tool, which nothing goes on from"
            raise BadRecord("answered", words)
        way = "continue_final_message" if goes_on else "add_generation_prompt"
        given: dict[str, Any] = {"tools": chat.tools, "documents": chat.documents}
        given = {name: value for name, value in given.items() if value is not None}
        given |= {**self._variables, **chat.variables, way: True, "tokenize": tokenize}
        try:
            return self._tokenizer.apply_chat_template(chat.messages, **given)
        except (TemplateError, *REFUSALS) as error:
            words = f"the chat template refuses the messages: {excerpt(str(error))}"
            raise BadRecord("bad_messages", words) from error

    def _check_roles(self, messages: Objects) -> None:
        for place, turn in enumerate(messages, 1):
            role = turn["role"]
            if role not in ROLES and self._source and not self._names(role):
                raise BadRecord(
                    "bad_messages",
                    f"message {place}: its role is {shown(role)}, which the chat template does not "
                    f"name; expected one of {', '.join(ROLES)}",
                )

    def _names(self, role: str) -> bool:
        return f"'{role}'" in self._source or f'"{role}"' in self._source

    def _check_calls(self, chat: Chat, text: str) -> None:
        """Make sure that the tools that a chat offers and calls are in its text, by their names."""
        offered = [("tool", tool) for tool in chat.tools or ()]
        called = [
            ("call of", call) for turn in chat.messages for call in turn.get("tool_calls", ())
        ]
        for what, function in offered + called:
            name = function.get("function", function)["name"]
            if name not in text and json.dumps(name)[1:-1] not in text:
                raise _left_out(f"the {what} {shown(name)}")

    def _judge(self, chat: Chat) -> BadRecord | None:
        """Return what the template leaves out of chats of this form.

        Each message in turn says something that no template changes, and must be in the text.
        """
        try:
            plain = self._render(chat)
            for what, bare in _bare(chat):
                if self._render(bare) == plain:
                    return _left_out(f"{what!r}")
            marked = [
                turn if turn["role"] in ANSWERING else {**turn, "content": _mark(place)}
                for place, turn in enumerate(chat.messages)
            ]
            text = self._render(replace(chat, messages=marked))
        except BadRecord:  # it needs what stands there, and so reads it
            return None
        for place, turn in enumerate(chat.messages):
            if turn["role"] not in ANSWERING and turn["content"] and _mark(place) not in text:
                return _left_out(f"message {place + 1}, of {turn['role']!r}")
        return None

    def _check_end(self, chat: Chat, text: str) -> None:
        end = self._tokenizer.eos_token
        if end and text.rstrip().endswith(end) and not self._continues(chat):
            raise BadRecord(
                "end_token",
                f"the chat template ends the prompt with {end!r}, the end of a text, and not with "
                "the start of an answer: correct its part for add_generation_prompt, or give "
                "'prompt_ids', which are taken as they are",
            )


def template_source(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of a tokenizer's chat templates, empty where it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        return "\n".join(map(str, template.values()))
    return template if isinstance(template, str) else ""


def _bare(chat: Chat) -> Iterator[tuple[str, Chat]]:
    """Yield the chat without each thing that stands beside its messages."""
    if chat.tools:
        yield "tools", replace(chat, tools=None)
    if chat.documents:
        yield "documents", replace(chat, documents=None)


def _form(chat: Chat) -> str:
    """Return what chats have in common whose messages a template reads alike."""
    turns = [(turn["role"], *sorted(turn), bool(turn["content"])) for turn in chat.messages]
    return repr((turns, bool(chat.tools), bool(chat.documents), chat.variables))


def _mark(place: int) -> str:
    return f"7{place:06d}3"


def _left_out(what: str) -> BadRecord:
    return BadRecord(
        "left_out",
        f"the chat template leaves out {what}: remove it from the record, or take a template that "
        "writes it",
    )

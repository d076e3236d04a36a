"""Llama-2's chat template.

    <s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{user} [/INST] {answer} </s><s>[INST] {user} [/INST]

`<s>` and `</s>` are the tokens BOS and EOS around each turn, not text: what a message says is always
tokenized as text. Source: Meta's `llama/generation.py`, `chat_completion`.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_ckpt.errors import OptionError
from llama_ckpt.worker.model_link import Part
from llama_ckpt.worker.requests import ChatMessage

__all__ = ["chat_parts"]

SYSTEM = "<<SYS>>\n{}\n<</SYS>>\n\n{}"


def chat_parts(messages: Sequence[ChatMessage]) -> list[Part]:
    """The turns of a conversation as pieces to tokenize.

    Args:
        messages: a system message or none; then user and assistant in turn, the user last.

    Raises:
        OptionError: they come in another order.
    """
    turns = [("system" if m.role == "developer" else m.role, m.text) for m in messages]
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    roles = [role for role, _ in turns]
    if len(roles) % 2 == 0 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        wanted = "a system message or none, then user and assistant in turn, the user last"
        raise OptionError("the roles of the messages", got=", ".join(m.role for m in messages), wanted=wanted)
    if system is not None:
        turns[0] = "user", SYSTEM.format(system, turns[0][1])
    texts = [text.strip() for _, text in turns]
    pairs = zip(texts[0:-1:2], texts[1::2], strict=True)
    past = [Part(f"[INST] {user} [/INST] {answer} ", bos=True, eos=True) for user, answer in pairs]
    return [*past, Part(f"[INST] {texts[-1]} [/INST]", bos=True, eos=False)]

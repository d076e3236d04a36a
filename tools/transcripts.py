"""What README.md and docs/diagnosis.md show of a terminal, written anew by running what they show.

    python -m tools.transcripts          write those that are out of date (`make docs` does too)

The commands stand in the pages; which program's dump they read stands here. What only the machine makes
otherwise, seconds and the digits of a rounding, does not make a transcript out of date.
tests/report/test_transcripts.py holds the pages to it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.comparing.their_programs import bug, run, write

__all__ = ["ROOT", "TRANSCRIPTS", "Transcript", "bring_up_to_date"]

ROOT = Path(__file__).parents[1]
DUMP = "mine.safetensors"


@dataclass(frozen=True)
class Transcript:
    """One command in a page and what it prints.

    Attributes:
        page: by its path from the root.
        command: as it stands after `$ `, up to the end of the code block.
        besides: options that are run and not shown, so that any machine prints the same.
    """

    page: str
    command: str
    besides: tuple[str, ...] = ()

    def on_the_page(self) -> str:
        """What the page shows now; empty where it lacks the command."""
        return self._cut((ROOT / self.page).read_text("utf-8"))[1]

    def printed(self) -> str:
        """What the command prints now.

        Raises:
            SystemExit: it does not end as one that found something wrong.
        """
        program, *words = self.command.split()
        start = {"llama-ckpt": ["-m", "llama_ckpt"], "python": []}[program]
        with tempfile.TemporaryDirectory() as folder:
            if DUMP in words:
                made = write(Path(folder), run(wrong=bug("rope-half-split"), blocks=[7]))
                words[words.index(DUMP)] = str(made)
            argv = [sys.executable, *start, *words, *self.besides]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != 1:
                raise SystemExit(f"{self.command} ended with {done.returncode}: {done.stderr}")
            shown = done.stdout.replace(str(Path(folder) / "theirs.safetensors"), DUMP)
        lines = shown.replace(sys.executable, "python").strip().splitlines()
        return "".join(f"{line.rstrip()}\n" for line in lines)

    def is_out_of_date(self, printed: str) -> bool:
        """Whether the page shows something else, beside what each machine makes in its own way."""
        return settled(self.on_the_page()) != settled(printed)

    def put(self, printed: str) -> None:
        """Write it into the page; lines that say the same as before stay as they are."""
        path = ROOT / self.page
        before, shown, after = self._cut(path.read_text("utf-8"))
        same = dict(zip(settled(shown), shown.strip().splitlines(), strict=True))
        lines = [
            same.get(key, line) for key, line in zip(settled(printed), printed.splitlines(), strict=True)
        ]
        path.write_text(before + "\n".join(lines) + "\n" + after, encoding="utf-8")

    def _cut(self, text: str) -> tuple[str, str, str]:
        before, command, rest = text.partition(f"$ {self.command}\n")
        shown, fence, after = rest.partition("```")
        return before + command, shown, fence + after


TRANSCRIPTS = (
    Transcript("README.md", f"llama-ckpt compare {DUMP}"),
    Transcript("docs/diagnosis.md", f"llama-ckpt compare {DUMP} -v"),
    Transcript("README.md", "python examples/wrong_epsilon.py 0 1 2 --stop-on-failure", ("--device", "cpu")),
)


def settled(text: str) -> list[str]:
    """Lines without seconds, and without the digits of an error that only rounding makes.

    Rounding depends on the machine's products. A letter of the strip is a power of ten, and stays.
    """
    text = re.sub(r"\d+\.\d s$", "N s", text, flags=re.M)
    text = re.sub(r"\d\.\d+e-0[6-9]", "N", text)
    return [line.rstrip() for line in text.strip().splitlines()]


def bring_up_to_date() -> list[str]:
    """Write the transcripts that are out of date; which these were."""
    changed = []
    for one in TRANSCRIPTS:
        printed = one.printed()
        if one.is_out_of_date(printed):
            one.put(printed)
            changed.append(f"{one.page}: {one.command}")
    return changed


if __name__ == "__main__":
    print("\n".join(bring_up_to_date()) or "all are up to date")

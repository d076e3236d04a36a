"""Two who write into one folder at once, and commands that are killed at any moment: what is left behind.

    python -m tools.kills_and_races --races 40 --moments 200 --jobs 2
    python -m tools.kills_and_races --races 0 --moments 20 --command export

A race: two captures of llama.cpp into one folder, started together, then two who only write; nothing of
either may be missing. A kill: SIGKILL for a command, or for all of its processes, at a random moment of its
run, a third of them in its last fifth. What stands under its name is whole then, old or new; helpers end; the
next run ends well, and nothing hidden outlives it. The figures are printed as lines of JSON; exit code 1 says
that something was not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.whole_files import file_sha256

__all__ = ["COMMANDS", "Command", "Moments", "kills", "main", "races"]

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0  # seconds for anything that is waited for
HELPERS = 15.0  # seconds in which helpers of a killed process end
DUMPS = 6
"""What each of two plain writers adds to a folder."""

WRITER = """
import sys
from dataclasses import replace
from llama_ckpt.dumps.reference import open_dumps, write_dump
given, folder, name = open_dumps(sys.argv[1]), sys.argv[2], sys.argv[3]
(whole,) = given.names
dump, manifest = given.dump(whole), given.manifest
tensors = {point: dump[point] for point in dump}
bare = replace(dump.entry, sampling=(), penalized=())
sys.stdin.readline()
for n in range(int(sys.argv[4])):
    entry = replace(bare, name=f"{name}{n}", file=f"{name}{n}.safetensors")
    write_dump(folder, model=manifest.model, producer=manifest.producer, entry=entry, tensors=tensors)
"""


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        words: after `python -m llama_ckpt`; OUT stands for the folder of its own.
        whole: says what is wrong with what it left in a folder, given the same of a run that was not killed.
    """

    words: tuple[str, ...]
    whole: Callable[[Path, Path], list[str]]


@dataclass
class Moments:
    """What came of the kills of one command.

    Attributes:
        seconds: of an undisturbed run.
        outcomes: how many were killed before anything, with the result there, or had ended before the kill.
        left: kills that left a hidden file, which the next run had to take away.
        wrong: a sentence for each thing that is not as it should be.
    """

    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    left: int = 0
    wrong: list[str] = field(default_factory=list)


def _same_files(folder: Path, right: Path) -> list[str]:
    """Every file that is there has the bytes of an undisturbed run."""
    return [
        f"{path.name} is not whole: {path.stat().st_size:,} bytes"
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and file_sha256(path) != file_sha256(right / path.name)
    ]


def _dumps_whole(folder: Path, right: Path) -> list[str]:
    wrong = _same_files_but_manifests(folder, right)
    if (folder / "manifest.json").exists():
        dumps = open_dumps(folder)
        for name in dumps.names:
            list(dumps.dump(name).values())  # raises where something is missing
    return wrong


def _same_files_but_manifests(folder: Path, right: Path) -> list[str]:
    return [said for said in _same_files(folder, right) if not said.startswith("manifest.json")]


def _report_whole(folder: Path, right: Path) -> list[str]:
    path = folder / "report.json"
    if not path.exists():
        return []
    found, wanted = (json.loads((one / path.name).read_text("utf-8")) for one in (folder, right))
    return [] if found.keys() == wanted.keys() else ["the report has not all of its parts"]


COMMANDS: dict[str, Command] = {
    "capture": Command(
        ("capture", "--tokens", "1,2,3", "--name", "a", "--max-tokens", "2", "--out", "OUT"), _dumps_whole
    ),
    "make-seeded": Command(
        (
            *("make-seeded", "--width", "256", "--heads", "4", "--ffn", "512", "--layers", "4"),
            *("--vocab", "8000", "--type", "Q8_0", "--out", "OUT/model.gguf"),
        ),
        _same_files,
    ),
    "export": Command(("export", "--layout", "hf", "--out", "OUT/model.safetensors"), _same_files),
    "validate": Command(("validate", "1", "--json", "OUT/report.json"), _report_whole),
}


def kills(command: Command, n: int, *, seed: int, jobs: int, scratch: Path) -> Moments:
    """Kill a command at `n` random moments.

    Args:
        scratch: an empty folder on the disk that is tried.
    """
    right = scratch / "right"
    took = [_whole_run(command, right) for _ in range(2)]
    found = Moments(round(min(took), 2))
    rng = random.Random(seed)
    plans = [(_moment(rng, found.seconds), rng.random() < 0.5, rng.random() < 0.5) for _ in range(n)]
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(
            lambda item: _one_kill(command, right, scratch / str(item[0]), *item[1]), enumerate(plans)
        )
        for outcome, left, wrong in done:
            found.outcomes[outcome] += 1
            found.left += left
            found.wrong += wrong
    return found


def _moment(rng: random.Random, seconds: float) -> float:
    return seconds * (rng.uniform(0.8, 1.05) if rng.random() < 1 / 3 else rng.random())


def _whole_run(command: Command, folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    process = _started(command, folder)
    code = process.wait(PATIENCE)
    if code != 0:
        raise SystemExit(f"{' '.join(command.words)}: exit code {code} without a kill")
    return time.monotonic() - began


def _started(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    """The command in a session and with a place for temporary files of its own."""
    words = [word.replace("OUT", str(folder)) for word in command.words]
    temporary = folder.parent / f"{folder.name}.tmp"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "llama_ckpt", *words],
        **{"cwd": ROOT, "env": _environment(TMPDIR=str(temporary)), "start_new_session": True},
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
    )


def _environment(**more: str) -> Mapping[str, str]:
    path = os.pathsep.join([str(ROOT), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **more}


def _one_kill(
    command: Command, right: Path, folder: Path, moment: float, whole_group: bool, older: bool
) -> tuple[str, bool, list[str]]:
    """One kill, and the run after it.

    Args:
        moment: seconds after its start. whole_group: its helpers are killed too.
        older: a good result of an earlier run is there.

    Returns:
        What was there, whether something hidden was left, and what is wrong.
    """
    if older:
        shutil.copytree(right, folder)
    else:
        folder.mkdir()
    process = _started(command, folder)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        pass
    ended = process.poll() is not None
    if not ended and whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    elif not ended:
        process.kill()
    process.wait(PATIENCE)
    wrong = _helpers_left(process.pid)
    wrong += _said_by(command, folder, right)
    there = any(not path.name.startswith(".") for path in folder.iterdir())
    hidden = bool(_hidden(folder))
    if hidden or moment * 1000 % 10 < 2:  # the next run has something to do, or is tried all the same
        wrong += _next_run(command, folder)
        wrong += [f"{path} outlives the next run" for path in _hidden(folder)]
        wrong += _said_by(command, folder, right)
    outcome = "ended before" if ended else "older or new there" if there else "nothing there yet"
    for path in (folder, folder.parent / f"{folder.name}.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    return outcome, hidden, [f"{moment:.3f} s: {said}" for said in wrong]


def _next_run(command: Command, folder: Path) -> list[str]:
    process = _started(command, folder)
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return [] if code == 0 else [f"the next run ends with {code}"]


def _said_by(command: Command, folder: Path, right: Path) -> list[str]:
    try:
        return command.whole(folder, right)
    except Exception as error:  # whatever a file that is not whole makes of its reader
        return [f"{type(error).__name__}: {str(error)[:200]}"]


def _hidden(folder: Path) -> list[Path]:
    """What is only there while something is made: beside the result, and among the temporary files."""
    beside = [path for path in folder.rglob("*") if path.name.startswith(".")]
    return beside + [*(folder.parent / f"{folder.name}.tmp").iterdir()]


def _helpers_left(session: int) -> list[str]:
    """Processes of a killed command that go on; they may take a moment to find out."""
    until = time.monotonic() + HELPERS
    while living := _living(session):
        if time.monotonic() > until:
            return [f"a helper goes on: {living}"]
        time.sleep(0.02)
    return []


def _living(session: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(words[3]) == session and words[0] not in "ZX":
            found.append(path.parent.name)
    return found


def races(n: int, *, jobs: int, scratch: Path, recorded: bool) -> list[str]:
    """What is lost in `n` races: of two captures where `recorded`, else of two who write recorded dumps."""
    with ThreadPoolExecutor(max(1, jobs // 2)) as pool:
        run = _race_of_captures if recorded else _race_of_writers
        return [said for lost in pool.map(lambda k: run(scratch / f"race-{k}"), range(n)) for said in lost]


def _race_of_captures(folder: Path) -> list[str]:
    folder.mkdir()
    words = COMMANDS["capture"].words
    two = [
        _started(Command(tuple(name if one == "a" else one for one in words), _dumps_whole), folder)
        for name in ("one", "two")
    ]
    return _lost(two, folder, {"one", "two"})


def _race_of_writers(folder: Path) -> list[str]:
    folder.mkdir()
    source = ROOT / "reference_dumps" / "llama-3" / "f16"
    two = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(source), str(folder), name, str(DUMPS)],
            **{"cwd": ROOT, "env": _environment(), "stdin": subprocess.PIPE, "text": True},
        )
        for name in "ab"
    ]
    for process in two:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return _lost(two, folder, {f"{name}{k}" for name in "ab" for k in range(DUMPS)})


def _lost(two: Sequence[subprocess.Popen[Any]], folder: Path, names: set[str]) -> list[str]:
    codes = [process.wait(PATIENCE) for process in two]
    for process in two:
        if process.stdin is not None:
            process.stdin.close()
    if codes != [0, 0]:
        return [f"{folder.name}: exit codes {codes}"]
    dumps = open_dumps(folder)
    wrong = [f"{folder.name}: {name} is lost" for name in sorted(names - set(dumps.names))]
    for name in dumps.names:
        list(dumps.dump(name).values())
    wrong += [f"{folder.name}: {path.name} is left" for path in folder.iterdir() if path.name.startswith(".")]
    return wrong


def main() -> int:
    """Run what the command line asks for, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--races", type=int, default=40)
    parser.add_argument("--moments", type=int, default=200, help="of each command")
    parser.add_argument("--command", action="append", choices=[*COMMANDS], help="only this one")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, about")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    names, wrong = asked.command or [*COMMANDS], list[str]()
    if find_spec("llama_cpp") is None:
        names = [name for name in names if name != "capture"]
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        for recorded in (True, False):
            if asked.races and (not recorded or "capture" in names):
                (folder := Path(place) / f"races-{recorded}").mkdir()
                lost = races(asked.races, jobs=asked.jobs, scratch=folder, recorded=recorded)
                _say(
                    "races of captures" if recorded else "races of writers", races=asked.races, lost=len(lost)
                )
                wrong += lost
        for name in names if asked.moments else ():
            (folder := Path(place) / name).mkdir()
            found = kills(COMMANDS[name], asked.moments, seed=asked.seed, jobs=asked.jobs, scratch=folder)
            _say(
                f"kills of {name}",
                **{"kills": asked.moments, "seconds": found.seconds, "outcomes": dict(found.outcomes)},
                **{"left something hidden": found.left, "wrong": len(found.wrong)},
            )
            wrong += [f"{name}: {said}" for said in found.wrong]
    print("\n".join(wrong[:40]), file=sys.stderr)
    return int(bool(wrong))


def _say(what: str, **figures: object) -> None:
    print(json.dumps({what: figures}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

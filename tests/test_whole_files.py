"""Files are whole or not there: after a kill, on a full disk, with two writers in one folder."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.errors import OptionError
from llama_ckpt.whole_files import appears_when_whole, check_writable, locked, scratch_folder, write_whole
from tests.draws import draws
from tools.kills_and_races import COMMANDS, kills

ROOT = Path(__file__).parents[1]

WRITER = """
import sys
from dataclasses import replace
from tests.dump_samples import ENTRY, MODEL, PRODUCER, tensors
from llama_ckpt.dumps.reference import write_dump
folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
given = tensors()
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, last):
    entry = replace(ENTRY, name=f"d{number}", file=f"d{number}.safetensors")
    write_dump(folder, model=MODEL, producer=PRODUCER, entry=entry, tensors=given)
"""


def start(program: str, *words: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-c", program, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_two_that_record_into_one_folder_lose_nothing(tmp_path: Path) -> None:
    """Each of the dumps of one is a race with some of the other's."""
    n = draws(6, 20)
    two = [start(WRITER, tmp_path, first, first + n) for first in (0, n)]
    go(two)
    assert [process.wait(60) for process in two] == [0, 0]
    dumps = open_dumps(tmp_path)
    assert sorted(dumps.names) == sorted(f"d{number}" for number in range(2 * n))
    for name in dumps.names:
        assert len(dumps.dump(name)["embd"]) == 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_a_kill_at_any_moment_leaves_whole_files(tmp_path: Path) -> None:
    rng = random.Random(5)
    for draw in range(draws(3, 12)):
        process = start(WRITER, tmp_path, 0, 3 if draw % 2 else 1000)
        go([process])
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "manifest.json").exists():
            dumps = open_dumps(tmp_path)
            assert all(len(list(dumps.dump(name).values())) for name in dumps.names)
    process = start(WRITER, tmp_path, 0, 1000)
    left = tmp_path / f".d0.safetensors.{process.pid}.x.partial"
    process.kill()
    process.wait()
    left.write_bytes(b"half")
    with appears_when_whole(tmp_path / "d0.safetensors") as partial:
        assert not left.exists() and partial.exists()
        partial.write_bytes(b"whole")
    assert not list(tmp_path.glob(".d0*"))


def test_a_killed_command_leaves_whole_files_and_nothing_hidden_beyond_the_next_run(tmp_path: Path) -> None:
    """A sample of `tools.kills_and_races --moments 200`, which finds what is not whole."""
    n = draws(2, 6)
    (tmp_path / "right").mkdir()
    found = kills(COMMANDS["export"], n, seed=3, jobs=2, scratch=tmp_path / "right")
    assert found.wrong == [] and sum(found.outcomes.values()) == n
    (tmp_path / "wrong").mkdir()
    never = replace(COMMANDS["export"], whole=lambda _folder, _right: ["half a file"])
    assert "half a file" in kills(never, 1, seed=3, jobs=1, scratch=tmp_path / "wrong").wrong[0]


def test_what_a_living_process_is_making_stays(tmp_path: Path) -> None:
    with appears_when_whole(tmp_path / "a") as first, appears_when_whole(tmp_path / "a") as second:
        assert first != second and first.exists()
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "report.json"
    write_whole(path, "good")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OptionError, match="cannot write .*report.json: got File too large"):
            write_whole(path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OptionError, match="cannot write /dev/full: got No space left"):
        write_whole(Path("/dev/full"), "x")


def test_no_device_and_no_link_is_replaced(tmp_path: Path) -> None:
    for special in (Path("/dev/null"), Path("/dev/full")):
        check_writable(special)
        with pytest.raises(OptionError, match="got a pipe or a device"), appears_when_whole(special):
            pass
    write_whole(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_writable(tmp_path / "link")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(OptionError, match="cannot write"):
            write_whole(tmp_path / name, "x")


def test_large_scratch_does_not_outlive_a_killed_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = tmp_path / f"llama-ckpt-folder.{gone.pid}.x.partial"
    dead.mkdir()
    (dead / "model.gguf").write_bytes(b"13 GB")
    made = scratch_folder("folder")
    assert made.is_dir() and not dead.exists() and list(tmp_path.iterdir()) == [made]


def test_a_lock_is_held_by_one_with_and_without_fcntl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "import sys, time\nfrom pathlib import Path\nfrom llama_ckpt.whole_files import locked\n"
    program += "{}with locked(Path(sys.argv[1])):\n print('ready', flush=True)\n sys.stdin.readline()\n"
    for without in (False, True):
        if without:
            monkeypatch.setitem(sys.modules, "fcntl", None)
        hidden = "sys.modules['fcntl'] = None\n" if without else ""
        other = start(program.format(hidden), tmp_path)
        began = time.monotonic()
        go_at = 0.3
        waker = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({go_at})"])
        waker.wait()
        go([other])
        with locked(tmp_path):
            assert time.monotonic() - began >= go_at
        assert other.wait(10) == 0 and not list(tmp_path.iterdir())


def test_a_lock_that_a_dead_process_left_is_taken_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / ".lock").write_text(str(gone.pid))
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())

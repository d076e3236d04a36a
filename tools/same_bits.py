"""Show that the engine computes the same bits every time: `python -m tools.same_bits --model M.gguf`.

Three fresh processes generate 256 tokens greedily and hash every token's logits: the first replays its
captured graph, the second launches every kernel, the third replays after other prompts of other lengths.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from reference_dumps import embedded_model

ROOT = Path(__file__).parents[1]
WAYS = ("replayed", "launched", "after others")
PROMPT = "In the beginning God created the heaven"


def digest(path: Path, way: str, n_tokens: int, precision: str) -> str:
    """SHA-256 over the tokens and the float32 logits of every step."""
    from llama_ckpt.engine.engine import Engine
    from llama_ckpt.model import load

    model = load(path, device="cuda")
    engine = Engine(model, precision, capacity=1024, graphs=way != "launched")  # type: ignore[arg-type]
    if way == "after others":
        for n in (3, 700, 40):
            engine.logits([(7 * i) % 31_000 + 3 for i in range(n)])
            engine.greedy(70)
    engine.reset()
    row = engine.prompt(model.tokenizer.encode(PROMPT))
    found = hashlib.sha256()
    for _ in range(n_tokens):
        token = int(row.argmax())
        found.update(row.cpu().numpy().tobytes() + token.to_bytes(4, "little"))
        row = engine.step(token)
    return found.hexdigest()


def main() -> int:
    """Compare the processes' digests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=embedded_model())
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--precision", choices=("fast", "high"), default="fast")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(digest(options.model, options.way, options.tokens, options.precision))
        return 0
    own = ["--model", str(options.model), "--tokens", str(options.tokens), "--precision", options.precision]
    command = [sys.executable, "-m", "tools.same_bits", *own, "--way"]
    runs = [subprocess.Popen([*command, way], cwd=ROOT, stdout=subprocess.PIPE, text=True) for way in WAYS]
    digests = [run.communicate()[0].strip() for run in runs]
    for way, found in zip(WAYS, digests, strict=True):
        print(f"{way:<14}{found}")
    same = len(set(digests)) == 1 and all(run.returncode == 0 for run in runs)
    print(f"{options.tokens} tokens, {options.precision}: {'the same bits' if same else 'DIFFERENT'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())

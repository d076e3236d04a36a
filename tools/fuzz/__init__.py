"""Hostile input, made by the thousand: GGUF files, dumps, manifests, maps, folders and requests.

    python -m tools.fuzz --seconds 600          make fuzz SECONDS=600
    python -m tools.fuzz --target map --seconds 30
    python -m tools.fuzz --goals --jobs 14 --seconds 540 --count     a million files, and docs/fuzzing.md
    python -m tools.fuzz --atheris              guided by atheris: pip install -r requirements/atheris.txt

Each target reads what a mutant holds as a command would, and a rule is held: it is read, or refused in one
line of fewer than 500 printable characters, within five seconds, in four times the file's size and 200 MB.
Mutants know the structure (a GGUF header's fields, JSON's values, a header's length); what is met for the
first time, a line of ours or a refusal, is kept and changed further.
"""

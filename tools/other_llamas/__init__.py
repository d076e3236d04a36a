"""Other people's Llamas on trial: programs that nobody here wrote, recorded, and judged by `compare`.

    python -m tools.other_llamas              # all programs on all models: docs/other_llamas.md
    python -m tools.other_llamas --only mlx_lm --models embedded --tokens 2 20
    python -m tools.other_llamas --list

A right program that is condemned is a fault of ours, so the command exits with 1 for it. Each program has
a driver in `programs/`, whose file name is its key, and an environment of its own under `.others/`; torch,
numpy and this project are shared with the environment that runs the command.
"""

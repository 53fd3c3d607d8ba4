"""Modules:

- `vlm_merging.cli.asking_commands`: Evaluation from the shell: `prepare`, `ask`, `score` and `compare`, each of which reads what the one before it wrote.
- `vlm_merging.cli.demo`: The whole toolkit on the lab's trio in about a minute, told in ten lines and on one page: `vlm-merging demo`.
- `vlm_merging.cli.main`: `vlm-merging`: the calls of Python from the shell, with exit codes that scripts can use.
- `vlm_merging.cli.probing_commands`: Understanding from the shell: `diagnose`, `probe` and `sweep`. All print words, keep tables, and draw a page that needs no network.
- `vlm_merging.cli.report`: What the demo tells: ten lines for a terminal, and one page that can be opened from a disk, mailed, and read on a phone or in the dark."""

__version__ = "0.1.0"

"""`python -m splade_lit.fit`: train an encoder as a YAML file says.

    python -m splade_lit.fit --config experiments/quickstart.yaml
    python -m splade_lit.fit --config experiments/quickstart.yaml --model.target_active_dims 80 --trainer.max_steps 50

Every setting of the model, the data and the trainer can be given in the file or on the command line; `--help` explains
them, `--print_config` prints a whole file. A run leaves in its folder (`trainer.default_root_dir`): config.yaml,
metrics.json, metrics.csv, checkpoints/last.ckpt, model/ and what its callbacks add.

W&B stays offline unless the environment says WANDB_MODE=online.
"""

import os
import sys
from collections.abc import Sequence

from splade_lit.command_line.arguments import read_settings
from splade_lit.command_line.exit_codes import run_command
from splade_lit.training.help_text import help_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train.

    Raises:
        UserError: bad input.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help"}.isdisjoint(arguments):
        print(help_text(), end="")
        return
    read_settings(arguments)  # before what takes seconds to load
    os.environ.setdefault("WANDB_MODE", "offline")
    from splade_lit.training.cli import run

    run(arguments)


if __name__ == "__main__":
    run_command(main)

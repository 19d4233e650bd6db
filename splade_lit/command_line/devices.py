"""Where a command runs."""

from typing import TYPE_CHECKING

from splade_lit.core.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(name: str | None) -> "torch.device":
    """The device of this name; `cuda` where there is one, else `cpu`, if none is given.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"there is no device {name} here; give cpu, or cuda where there is a GPU.") from error
    return device

"""Where a command runs, and in which precision."""

from typing import TYPE_CHECKING, Any

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


def precision_on_cpu(precision: Any) -> Any:
    """The precision of training that comes next to this one on this CPU and is fast on it.

    In place of `16-mixed`, which is for GPUs, it is `bf16-mixed`. Where the CPU cannot multiply bf16 numbers, and would
    have to imitate it slowly, both give `32-true`. All else stays as it is.
    """
    if precision not in ("16-mixed", "bf16-mixed"):
        return precision
    return "bf16-mixed" if _multiplies_bf16() else "32-true"


def _multiplies_bf16() -> bool:
    import torch

    # Older versions of torch do not tell: then single precision is the safe choice.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

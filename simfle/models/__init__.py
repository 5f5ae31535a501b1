"""Methods, networks and losses."""

import sys

# timm imports wandb if it is installed, for one function of its training scripts: 0.3 s of the start of each process.
if "timm" not in sys.modules and "wandb" not in sys.modules:
    sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import timm  # noqa: F401
    finally:
        del sys.modules["wandb"]

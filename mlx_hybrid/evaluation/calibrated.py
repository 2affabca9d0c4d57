"""What an adapter keeps of its task: the calibration in its `adapter_config.json`, fitted on validation records."""

from pathlib import Path

from mlx_hybrid.evaluation.metrics.calibration import Calibration
from mlx_hybrid.files import read_json, write_json

KEY = "calibration"


def read_calibration(adapter: Path | None) -> Calibration | None:
    """The one stored with an adapter, if any."""
    own = read_json(adapter / "adapter_config.json").get("mlx_hybrid", {}) if adapter else {}
    return Calibration(**own[KEY]) if KEY in own else None


def write_calibration(adapter: Path, calibration: Calibration) -> None:
    """Store one with an adapter of ours; stock mlx-lm's has no place for it."""
    path = adapter / "adapter_config.json"
    tree = read_json(path)
    if "mlx_hybrid" in tree:
        tree["mlx_hybrid"][KEY] = calibration.tree()
        write_json(path, tree)

"""What a training run took from the grid, estimated from its own time and an assumed power; nothing is asked of a network."""

import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

# What Green Algorithms takes for a core of a processor that it does not know (Lannelongue et al. 2021, data/TDP_cpu.csv).
WATTS_PER_CORE = 12.0
# Of electricity, the world's average in 2023 (Ember, Global Electricity Review 2024).
KILOGRAMS_PER_KILOWATT_HOUR = 0.48


class Footprint(NamedTuple):
    """An estimate.

    Attributes:
        hours: Of the training.
        watts: Of all its devices, assumed.
        kilowatt_hours: Their product.
        grams: CO2 equivalents.
        whole: Whether `hours` is all of the run: of one that was gone on with, only the last part's time is known.
    """

    hours: float
    watts: float
    kilowatt_hours: float
    grams: float
    whole: bool


def assumed_watts(device: torch.device) -> float | None:
    """The power of a device at work: a GPU's limit as its driver states it, 12 W for each thread of a CPU; None if unknown."""
    if device.type == "cpu":
        return WATTS_PER_CORE * torch.get_num_threads()
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    # Not by number: nvidia-smi counts other than CUDA_VISIBLE_DEVICES does.
    query += ["-i", f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    answer = subprocess.run(query, capture_output=True, text=True)
    try:
        return float(answer.stdout)
    except ValueError:  # "[N/A]", as on boards that share their power with a CPU
        return None


def estimate(facts: Mapping[str, Any]) -> Footprint | None:
    """The footprint of a run.

    Args:
        facts: As in `report/report.json`; of `results` the seconds `train_runtime`, of `training` the `assumed watts`.

    Returns:
        None where the run did not leave both.
    """
    results = facts.get("results") or {}
    seconds, watts = results.get("train_runtime"), (facts.get("training") or {}).get("assumed watts")
    if seconds is None or watts is None:
        return None
    hours = seconds / 3600
    kilowatt_hours = hours * watts / 1000
    # A run that was gone on with has no mean loss, since it would be that of the last part alone.
    whole = "train_loss" in results
    return Footprint(hours, watts, kilowatt_hours, 1000 * KILOGRAMS_PER_KILOWATT_HOUR * kilowatt_hours, whole)

"""Estimates a run's energy and CO2 from its duration and an assumed power draw. Makes no network request."""

import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

# Green Algorithms' value for a core of an unknown processor (Lannelongue et al. 2021, data/TDP_cpu.csv).
WATTS_PER_CORE = 12.0
# World average of electricity in 2023 (Ember, Global Electricity Review 2024).
KILOGRAMS_PER_KILOWATT_HOUR = 0.48


class Footprint(NamedTuple):
    """An estimate of a run's energy and emissions.

    Attributes:
        hours: Duration of the training.
        watts: Assumed power of all its devices.
        kilowatt_hours: Their product.
        grams: CO2 equivalents.
        whole: True if `hours` covers the whole run; for a resumed run only the last part's time is known.
    """

    hours: float
    watts: float
    kilowatt_hours: float
    grams: float
    whole: bool


def assumed_watts(device: torch.device) -> float | None:
    """Returns a device's assumed power: a GPU's limit from its driver, 12 W per thread of a CPU, None if unknown."""
    if device.type == "cpu":
        return WATTS_PER_CORE * torch.get_num_threads()
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    # By UUID: nvidia-smi's numbers differ from those of CUDA_VISIBLE_DEVICES.
    query += ["-i", f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    answer = subprocess.run(query, capture_output=True, text=True)
    try:
        return float(answer.stdout)
    except ValueError:  # "[N/A]", for example on boards that share their power with a CPU
        return None


def estimate(facts: Mapping[str, Any]) -> Footprint | None:
    """Estimates the footprint of a run.

    Args:
        facts: The content of `report/report.json`, with `train_runtime` (seconds) in `results` and `assumed watts` in
            `training`.

    Returns:
        The estimate, or None if one of the two is missing.
    """
    results = facts.get("results") or {}
    seconds, watts = results.get("train_runtime"), (facts.get("training") or {}).get("assumed watts")
    if seconds is None or watts is None:
        return None
    hours = seconds / 3600
    kilowatt_hours = hours * watts / 1000
    # A resumed run has no mean loss, because it would cover only the last part.
    whole = "train_loss" in results
    return Footprint(hours, watts, kilowatt_hours, 1000 * KILOGRAMS_PER_KILOWATT_HOUR * kilowatt_hours, whole)

"""`vtr doctor`: versions, machine, and which kernel runs and why the others don't."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "open_clip_torch", "accelerate", "webdataset", "decord", "av",
    "faiss-cpu", "faiss-gpu", "safetensors", "tyro", "cuda-core", "mamba-ssm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """Show what is installed, which kernel runs and why."""

    json: bool = False


def examine() -> dict[str, Any]:
    """Everything the report says."""
    import torch

    from vtr.kernels.bimamba import backend_info

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    notes = []
    if versions["faiss-cpu"] and versions["faiss-gpu"]:
        notes.append("faiss-cpu and faiss-gpu are both installed and overwrite each other: uninstall one")
    spec = importlib.util.find_spec("kernels")
    if spec is not None and spec.origin and "vtr" not in str(spec.origin):
        notes.append("a package named `kernels` is installed; vtr's is vtr.kernels, they do not meet")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = None
    if Path("/proc/meminfo").is_file():
        memory = round(int(Path("/proc/meminfo").read_text().split()[1]) / 2**20, 1)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "gpu": gpu,
        "bimamba": [asdict(row) if is_dataclass(row) and not isinstance(row, type) else row for row in backend_info()],
        "notes": notes,
    }


def run(settings: DoctorSettings) -> int:
    """`vtr doctor`."""
    report = examine()
    if settings.json:
        print(json.dumps(report, default=str))
        return 0
    print(
        f"python {report['python']}, {report['cores']} cores, torch uses {report['threads']}, {report['memory_gib']} GiB"
    )
    print(f"gpu: {report['gpu'] or 'none'}")
    for name, version in report["packages"].items():
        print(f"  {name:<18}{version or 'not installed'}")
    print("bimamba:")
    for row in report["bimamba"]:
        print("  " + (", ".join(f"{k} {v}" for k, v in row.items()) if isinstance(row, dict) else str(row)))
    for note in report["notes"]:
        print(f"note: {note}")
    return 0


COMMANDS = {"doctor": (DoctorSettings, run)}

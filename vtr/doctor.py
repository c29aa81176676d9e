"""`vtr doctor`: versions, machine, and which kernel runs and why the others don't."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "open_clip_torch", "accelerate", "webdataset", "decord", "av",
    "faiss-cpu", "faiss-gpu", "safetensors", "tyro", "cuda-core", "mamba-ssm",
)  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """Show what is installed, which kernel runs and why."""

    json: bool = False


def examine() -> dict[str, Any]:
    """Everything the report says."""
    import torch

    import vtr
    from vtr.kernels.bimamba import backend_info
    from vtr.kernels.linear import linear_info

    versions = {name: _version(name) for name in PACKAGES}
    notes = []
    if versions["faiss-cpu"] and versions["faiss-gpu"]:
        notes.append("faiss-cpu and faiss-gpu are both installed and overwrite each other: uninstall one")
    if _version("kernels"):
        notes.append("a package named `kernels` is installed; vtr's is vtr.kernels, the two never meet")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = None
    if Path("/proc/meminfo").is_file():
        memory = round(int(Path("/proc/meminfo").read_text().split()[1]) / 2**20, 1)
    return {
        "vtr": vtr.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "gpu": gpu,
        "bimamba": [asdict(row) for row in backend_info()],
        "linear": [asdict(row) for row in linear_info()],
        "notes": notes,
    }


def run(settings: DoctorSettings) -> int:
    """`vtr doctor`."""
    report = examine()
    if settings.json:
        print(json.dumps(report, default=str))
        return 0
    memory = f", {report['memory_gib']} GiB memory" if report["memory_gib"] else ""
    print(f"vtr {report['vtr']}, python {report['python']} on {report['system']}")
    print(f"{report['cores']} cores, torch uses {report['threads']} threads{memory}, GPU: {report['gpu'] or 'none'}")
    print("\npackages:")
    for name, version in report["packages"].items():
        print(f"  {name:<18}{version or 'not installed'}")
    for title, key in (("the kernel bimamba", "bimamba"), ("linear layers", "linear")):
        print(f"\nbackends of {title}, in order of preference:")
        for row in report[key]:
            used = f"; used for {row['chosen_for']}" if row["chosen_for"] else ""
            print(f"  {row['name']:<11}{'yes' if row['available'] else 'no':<5}{row['reason']}{used}")
    for note in report["notes"]:
        print(f"note: {note}")
    return 0


COMMANDS = {"doctor": (DoctorSettings, run)}

"""`vtr doctor`: versions, machine, which kernel runs and why the others don't, and what stands in each other's way."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtr.files import DISTRIBUTION, import_root, install_command

PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "open_clip_torch", "accelerate", "webdataset", "decord", "av",
    "faiss-cpu", "pyarrow", "safetensors", "tyro", "cuda-core", "mamba-ssm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """Show what is installed, which kernel runs and why."""

    json: bool = False
    """Print one JSON object."""


def installed() -> dict[str, str]:
    """Every distribution of this Python: its name in the index's spelling (`open-clip-torch`), and its version."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a folder that a broken uninstall left behind has none
            found.setdefault(_spelled(name), distribution.version)
    return found


def _spelled(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def conflicts(versions: Mapping[str, str], providers: Iterable[str]) -> list[str]:
    """What is installed and must not be together, each with what to do.

    Args:
        versions: Of `installed`.
        providers: The distributions that have a top-level package `vtr`.
    """
    notes = []
    faiss = [name for name in versions if name == "faiss" or name.startswith("faiss-")]
    if len(faiss) > 1:
        names = " ".join(faiss)
        notes.append(
            f"{' and '.join(faiss)} are installed together and overwrite each other's files: "
            f"pip uninstall -y {names}, then pip install the one you want"
        )
    strangers = sorted({_spelled(name) for name in providers} - {DISTRIBUTION})
    for name in strangers:
        notes.append(
            f"the distribution {name!r} has a package named vtr too, and one overwrites the other: "
            f"pip uninstall -y {name} {DISTRIBUTION}, then {install_command()}"
        )
    if "kernels" in versions:
        notes.append("a package named `kernels` is installed; vtr's is vtr.kernels, the two never meet")
    return notes


def _memory_gib() -> float | None:
    """Memory of this machine; None where it does not say (no /proc)."""
    try:
        return round(int(Path("/proc/meminfo").read_text().split()[1]) / 2**20, 1)
    except (OSError, ValueError, IndexError):
        return None


def examine() -> dict[str, Any]:
    """Everything the report says."""
    import torch

    import vtr
    from vtr.kernels.add_norm import add_norm_info
    from vtr.kernels.bimamba import backend_info
    from vtr.kernels.linear import linear_info

    versions = installed()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    faiss = tuple(sorted(name for name in versions if name.startswith("faiss-") and name not in PACKAGES))
    return {
        "vtr": getattr(vtr, "__version__", "?"),
        "from": str(import_root()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: versions.get(_spelled(name)) for name in (*PACKAGES, *faiss)},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpu": gpu,
        "bimamba": [asdict(row) for row in backend_info()],
        "add_norm": [asdict(row) for row in add_norm_info()],
        "linear": [asdict(row) for row in linear_info()],
        "notes": conflicts(versions, importlib.metadata.packages_distributions().get("vtr", ())),
    }


def run(settings: DoctorSettings) -> int:
    """`vtr doctor`."""
    report = examine()
    if settings.json:
        print(json.dumps(report, default=str))
        return 0
    memory = f", {report['memory_gib']} GiB memory" if report["memory_gib"] else ""
    print(
        f"vtr {report['vtr']} ({DISTRIBUTION}), python {report['python']} on {report['system']}, from {report['from']}"
    )
    print(f"{report['cores']} cores, torch uses {report['threads']} threads{memory}, GPU: {report['gpu'] or 'none'}")
    print("\npackages:")
    for name, version in report["packages"].items():
        print(f"  {name:<18}{version or 'not installed'}")
    for title, key in (
        ("the kernel bimamba", "bimamba"),
        ("residual add and norm", "add_norm"),
        ("linear layers", "linear"),
    ):
        print(f"\nbackends of {title}, in order of preference:")
        for row in report[key]:
            used = f"; used for {row['chosen_for']}" if row["chosen_for"] else ""
            print(f"  {row['name']:<11}{'yes' if row['available'] else 'no':<5}{row['reason']}{used}")
    for note in report["notes"]:
        print(f"note: {note}")
    return 0


@dataclass(frozen=True, kw_only=True)
class VersionSettings:
    """Print the version."""


def version(settings: VersionSettings) -> int:
    """`vtr version`."""
    import vtr

    print(f"vtr {getattr(vtr, '__version__', '?')}")
    return 0


COMMANDS = {"doctor": (DoctorSettings, run), "version": (VersionSettings, version)}

"""Fixtures shared by all tests: where the outside test data lives, and the thread count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vtr.threads import cores, wait_asleep

wait_asleep()  # before a test loads torch: the workers of pytest share the cores, and what spins takes them from another
# Read by gRPC when it is imported, by whichever test comes first: its threads break the decoders that later ones fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

REPO = Path(__file__).resolve().parent.parent


def shared_root() -> Path:
    """The folder of outside test data: `$VTR_SHARED`, else `../shared` beside the checkout."""
    return Path(os.environ.get("VTR_SHARED", REPO.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    root = shared_root()
    if not root.is_dir():
        pytest.skip("outside test data is absent: no ../shared beside the checkout and VTR_SHARED is not set")
    return root


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    torch.set_num_threads(max(1, cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def pytest_terminal_summary(terminalreporter) -> None:
    """Lists what ran of the CUDA kernels, since without a GPU that is what they rest on."""
    counts: dict[str, dict[str, int]] = {}
    registers: dict[str, list[tuple[int, int]]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.getreports(outcome):
            path, _, name = report.nodeid.partition("::")
            if path in ("tests/kernels/test_cuda.py", "tests/kernels/test_add_norm.py") and report.when != "teardown":
                found = counts.setdefault(name.partition("[")[0], {})
                found[outcome] = found.get(outcome, 0) + 1
            for kernel, used, spills in dict(getattr(report, "user_properties", ())).get("registers", ()):
                registers.setdefault(kernel, []).append((used, spills))
    if not counts:
        return
    terminalreporter.section("CUDA kernels: what ran")
    for name, found in counts.items():
        terminalreporter.line(f"{name}: " + ", ".join(f"{count} {outcome}" for outcome, count in found.items()))
    for kernel, seen in sorted(registers.items()):
        used, spills = zip(*seen)
        terminalreporter.line(
            f"  {kernel:<20} {min(used)} to {max(used)} registers, {min(spills)} to {max(spills)} bytes of spills"
            f" in {len(seen)} builds"
        )

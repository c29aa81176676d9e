"""Checkpoints as others save them: the dicts and wrappers around the weights, and what is not opened."""

from __future__ import annotations

import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vtr.encoders.official import bare_names, load_official, read_checkpoint
from vtr.encoders.videomamba import VideoMamba, VideoMambaConfig
from vtr.errors import VtrError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def encoder() -> VideoMamba:
    torch.manual_seed(0)
    return VideoMamba(VideoMambaConfig(image_size=32, dim=32, depth=2, num_frames=4))


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


LAYOUTS: dict[str, Callable[[State], object]] = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}}, "scaler": {"scale": 1.0}},
    "ddp": lambda s: {"module": under("module.", s)},
    "compiled": lambda s: {"model": under("_orig_mod.", s)},
    "ddp of compiled": lambda s: {"model": under("module._orig_mod.", s)},
    "compiled ddp": lambda s: {"model": under("_orig_mod.module.", s)},
    "lightning": lambda s: {"state_dict": under("model.", s), "pytorch-lightning_version": "2.5"},
    "lightning compiled": lambda s: {"state_dict": under("model._orig_mod.", s)},
    "lightning net": lambda s: {"state_dict": under("net.", s)},
    "fsdp": lambda s: under("_fsdp_wrapped_module.", s),
    "composer": lambda s: {"state": {"model": under("module.", s)}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "ema alone": lambda s: {"model_ema": s, "epoch": 1},
    "timm": lambda s: {"state_dict": under("module.", s), "state_dict_ema": other(s), "arch": "x"},
    "average beside the model": lambda s: {"state_dict": under("model.", s) | under("ema_model.", other(s))},
    "with settings": lambda s: {"model": s, "args": Namespace(lr=1e-3)},
    "params": lambda s: {"params": s},
    "deepspeed": lambda s: {"module": s, "ds_version": "0.1", "param_shapes": [{k: v.shape for k, v in s.items()}]},
    "a part of somebody's model": lambda s: {"state_dict": under("net.backbone.", s)},
    "a compiled block": lambda s: {k.replace("layers.1.", "layers.1._orig_mod."): v for k, v in s.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_found_in_whatever_wraps_them(layout: str, encoder: VideoMamba, tmp_path: Path) -> None:
    state = dict(encoder.state_dict())
    torch.save(LAYOUTS[layout](state), tmp_path / "x.ckpt")
    found = read_checkpoint(tmp_path / "x.ckpt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_an_average_of_torch_is_read_without_its_counter(encoder: VideoMamba, tmp_path: Path) -> None:
    torch.save(AveragedModel(encoder).state_dict(), tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").keys() == encoder.state_dict().keys()


def test_safetensors_are_read_the_same_way(encoder: VideoMamba, tmp_path: Path) -> None:
    save_file(under("module.", dict(encoder.state_dict())), tmp_path / "x.safetensors")
    assert read_checkpoint(tmp_path / "x.safetensors").keys() == encoder.state_dict().keys()


def test_a_file_is_read_by_its_content_whatever_its_ending(encoder: VideoMamba, tmp_path: Path) -> None:
    save_file(dict(encoder.state_dict()), tmp_path / "x.bin")
    torch.save(encoder.state_dict(), tmp_path / "x.safetensors")
    for name in ("x.bin", "x.safetensors"):
        assert read_checkpoint(tmp_path / name).keys() == encoder.state_dict().keys()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1f\x8b0000000000", "gzip-compressed"),
        (b"\x89HDF\r\n\x1a\n0000", "an HDF5 file"),
        (b'{"weight_map": {}}', "is JSON"),
        (b"\x08\x07\x12\x07pytorch", "damaged, or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_it_is(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(VtrError, match=says):
        read_checkpoint(tmp_path / "x.pth")


def test_weights_under_names_of_no_model_are_named(tmp_path: Path) -> None:
    torch.save({"student": {"w": torch.ones(1)}, "teacher": {"w": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(VtrError, match="only under student, teacher"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "change",
    [lambda v: (v * 10).to(torch.int8), lambda v: v.to(torch.float8_e4m3fn), lambda v: v.to(torch.complex64),
     lambda v: v.to_sparse(), lambda v: v.to("meta")],
)  # fmt: skip
def test_values_that_are_no_weights_as_they_are_are_refused(
    change: Callable[[Tensor], Tensor], encoder: VideoMamba
) -> None:
    state = dict(encoder.state_dict())
    with pytest.raises(VtrError, match=r"cls_token is .*expected float32, float64, float16 or bfloat16"):
        load_official(encoder, {**state, "cls_token": change(state["cls_token"])})
    load_official(encoder, {k: v.double() for k, v in state.items()})


def test_what_is_beside_a_lightning_model_is_not_lost() -> None:
    state = {"model.norm.weight": torch.ones(2), "criterion.weight": torch.ones(1)}
    assert bare_names(state).keys() == {"norm.weight", "criterion.weight"}


@pytest.mark.parametrize(
    ("extra", "named"), [({"best": np.float64(3.2)}, "numpy"), ({"where": Path("/x")}, "pathlib"), (None, "Linear")]
)
def test_more_than_tensors_is_refused_with_a_command_that_saves_the_tensors(
    extra: dict[str, object] | None, named: str, tmp_path: Path
) -> None:
    layer = nn.Linear(2, 3)
    torch.save(layer if extra is None else {"model": layer.state_dict(), **extra}, tmp_path / "x.pth")
    with pytest.raises(VtrError, match=f"holds more than tensors.*{named}") as error:
        read_checkpoint(tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    command = shlex.split(str(error.value).partition("save its tensors alone: ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    assert torch.equal(read_checkpoint(tmp_path / "tensors.pth")["weight"], layer.weight)

"""What the tests of training share: a small demo corpus with a teacher that is hardly trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtr.data.demo import ensure_demo_corpus
from vtr.data.manifests import load_corpus
from vtr.data.stream import Stream, StreamSettings
from vtr.pretrain.build import build_model
from vtr.pretrain.recipes import recipe
from vtr.pretrain.teacher import ensure_demo_teacher


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    ensure_demo_corpus(root / "demo", clips=96, images=48, progress=False)
    # The demo's teacher, hardly trained: the runs find it there.
    model = build_model("demo", load_corpus("demo", root / "demo"), root, recipe("clean", "demo"))
    settings = StreamSettings(size=64, batch_size=8, streams=8, workers=0, crop_scale=None, flip=False)
    stream = Stream(load_corpus("demo", root / "demo"), settings)
    ensure_demo_teacher(root / "demo" / "teacher", iter(stream), model, steps=3)
    stream.close()
    return root

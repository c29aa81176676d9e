"""Recognition data: labels (`vtr.data.labels`) and views (`vtr.data.views`) under one name."""

from vtr.data.labels import (
    IMAGES,
    LAYOUTS,
    SPLITS,
    Item,
    Labelled,
    Split,
    labelled_rows,
    load_split,
    read_list,
    windows,
)
from vtr.data.views import Augment, crop_views, mix, read_item, sample_test, sample_train, seeded

__all__ = [
    "IMAGES",
    "LAYOUTS",
    "SPLITS",
    "Augment",
    "Item",
    "Labelled",
    "Split",
    "crop_views",
    "labelled_rows",
    "load_split",
    "mix",
    "read_item",
    "read_list",
    "sample_test",
    "sample_train",
    "seeded",
    "windows",
]

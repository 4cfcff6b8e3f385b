"""`general-zh`: Alibaba's 万物识别-中文-通用领域, as ModelScope distributes it.

Network and preprocessing are those of ModelScope's pipeline (modelscope/pipelines/cv,
`general_recognition`): ResNeSt-101, the shorter side to 256 pixels, a centre crop of 224. timm's
`resnest101e` has the same parameters under the same names.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from wuwan_runner.errors import ModelError
from wuwan_runner.models import label_files
from wuwan_runner.models.conversion import Checkpoint
from wuwan_runner.models.manifest import Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME = "general-zh"
MODELSCOPE_ID = "iic/cv_resnest101_general_recognition"
WEIGHTS = "pytorch_model.pt"
LABELS = "meta_info.txt"
# Of the list with 54,092 lines. For the weights no sum is published outside of the hub itself.
LABELS_SHA256 = "b7e6bb1835859262721051c70dee03e9a30ae6792790498ee703c39b961bd12e"

_INPUT = {
    "size": 224,
    "resize": 256,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def source(name: str, directory: Path, notify: Callable[[str], None]) -> Source:
    """What a bundle is made from, in a directory as ModelScope downloads it.

    Raises:
        ModelError: if a file is missing, or the label list is not as it should be.
    """
    for file in (WEIGHTS, LABELS):
        if not (directory / file).is_file():
            raise ModelError(
                f"{directory} has no file {file}",
                hint=f"it must hold {WEIGHTS} and {LABELS} of the model {MODELSCOPE_ID}",
            )
    labels = directory / LABELS
    table = label_files.read_meta_info(labels)
    if hashlib.sha256(labels.read_bytes()).hexdigest() != LABELS_SHA256:
        notify(f"{labels} is not the list that is known ({len(table.rows):,} lines); using it")
    return Source(
        name=name,
        checkpoint=Checkpoint(
            weights=directory / WEIGHTS,
            architecture="resnest101e",
            classes=len(table.rows),
            activation="softmax",
        ),
        labels=table,
        input=_INPUT,
        description="万物识别-中文-通用领域，ResNeSt-101，三级中文标签。"
        "General recognition with Chinese labels at three levels, by Alibaba.",
        license=f"see the model's page: {MODELSCOPE_ID} on ModelScope",
        origin=f"ModelScope {MODELSCOPE_ID}",
    )

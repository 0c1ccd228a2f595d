"""scikit-learn's bundled handwritten digits: 1797 grey images of 8x8 pixels, ten classes."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import TensorDataset

TEST_IMAGES = 450
SPLIT_SEED = 0


def digits() -> tuple[TensorDataset, Tensor, Tensor]:
    """The one split that every run uses, classes in equal proportion.

    Returns:
        Training set; test images (450, 1, 8, 8), float32 in [0, 1]; test labels (450,), int64.
    """
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    return TensorDataset(images[train], labels[train]), images[test], labels[test]

"""Record `vn_pointnet.npz` and `vn_dgcnn.npz` with the authors' code: `python record_vn.py CLONE_OF_VNN`.

The clone is of https://github.com/FlyingGiraffe/vnn, with `torch.device('cuda')` replaced by `x.device` in
models/utils/vn_dgcnn_util.py, so that it runs without a GPU.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path[:0] = [sys.argv[1], str(Path(__file__).parents[1])]
from golden_files import seeded_weights  # noqa: E402

CLOUDS, POINTS = 4, 128
torch.set_default_dtype(torch.float64)

for name, output in (("vn_pointnet", "log_probabilities"), ("vn_dgcnn", "logits")):
    released = importlib.import_module(f"models.{name}_cls")
    model = released.get_model(SimpleNamespace(n_knn=20, pooling="mean"), 40).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(seeded_weights(shapes))
    random = np.random.RandomState(1)
    points = 2 * random.random_sample((CLOUDS, POINTS, 3)) - 1
    points = (points * (0.2 + random.random_sample((CLOUDS, 1, 3)))).astype(np.float32).astype(np.float64)
    with torch.no_grad():
        outputs = model(torch.from_numpy(points).transpose(1, 2))[0]
    np.savez_compressed(
        Path(__file__).with_name(f"{name}.npz"),
        points=points,
        shapes=np.array([(key, " ".join(map(str, shape))) for key, shape in shapes.items()]),
        **{output: outputs.numpy()},
    )
    print(
        f"{name}: outputs of different clouds differ by {float((outputs - outputs.mean(0)).abs().max()):.2g}"
    )

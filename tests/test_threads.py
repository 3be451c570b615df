"""Every kernel gives the same bits on any number of threads."""

import os
import subprocess
import sys

CODE = """
import hashlib
import numpy as np
import rsprune
from rsprune import _C

rng = np.random.default_rng(0)
images = rng.integers(0, 99, (3, 130, 90, 3)).astype(np.uint8)
texture = np.empty(3, np.float32), np.empty(3, np.float32)
_C.texture(images, None, *texture)
points = rng.standard_normal((3000, 150), np.float32)
km = rsprune.KMeans(50, max_iter=5, random_state=0).fit(points)
results = (
    rsprune.patch_entropy(images, 16), *texture, *rsprune.kmeans_assign(points, points[:90]), km.labels_,
    km.cluster_centers_,
)
print([hashlib.sha256(result.tobytes()).hexdigest() for result in results])
"""


def test_same_bits_on_any_number_of_threads():
    said = {
        subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in (1, 2, 5)
    }
    assert len(said) == 1

"""The embedding space: standardised, of unit length, saved."""

import subprocess
import sys

import numpy as np
import pytest

from rsprune.embedding import Transform
from rsprune.errors import ConfigError


def test_transform_by_hand():
    t = Transform.fit(np.array([[0, 5, 1], [2, 5, 3], [np.nan, 0, 0], [4, 5, 5]], np.float32))
    np.testing.assert_allclose(t.mean, [2, 5, 3])
    np.testing.assert_allclose(t.scale, [np.sqrt(8 / 3), 1, np.sqrt(8 / 3)])
    x = t(np.array([[4, 5, 5], [2, 5, 3], [np.inf, 5, 3], [2, 6, 3]], np.float32))
    assert x.dtype == np.float16
    np.testing.assert_allclose(x[0], [np.sqrt(0.5), 0, np.sqrt(0.5)], atol=1e-3)
    np.testing.assert_array_equal(x[1], 0)
    assert np.isnan(x[2]).all()
    np.testing.assert_array_equal(x[3], [0, 1, 0])


def test_transform_standardises_and_sets_length():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(500, 16)) * np.logspace(-6, 6, 16) + 3).astype(np.float32)
    t = Transform.fit(features)
    x = t(features).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=2e-3)
    well_conditioned = np.logspace(-6, 6, 16) > 1e-4
    np.testing.assert_allclose(x.std(axis=0)[well_conditioned], 0.25, atol=0.02)
    np.testing.assert_array_equal(t(features[:7]), t(features)[:7])


def test_constant_feature_is_not_blown_up():
    features = np.column_stack([np.full(1000, 0.1), np.arange(1000.0)])
    t = Transform.fit(features)
    assert t.scale[0] == 1
    np.testing.assert_array_equal(t(np.array([[0.1, 0.0]]))[0], [0, -1])


@pytest.mark.parametrize("features", [np.empty((0, 3)), np.full((2, 3), np.nan)])
def test_transform_of_nothing_only_sets_lengths(features):
    np.testing.assert_allclose(Transform.fit(features)(np.array([[3.0, 0, 4]])), [[0.6, 0, 0.8]], atol=1e-3)


def test_transform_refuses_another_dimension():
    with pytest.raises(ValueError, match=r"features must be \[n, 3\], got \[2, 4\]"):
        Transform.fit(np.eye(3))(np.ones((2, 4)))


def test_transform_is_saved_and_read_back(tmp_path):
    features = np.random.default_rng(0).normal(size=(9, 4))
    t = Transform.fit(features, encoder="lite0", weight_hash="ab12", metadata={"b": "2", "a": "1", "c": "ü"})
    t.save(tmp_path / "t.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
    back = Transform.load(tmp_path / "t.safetensors")
    assert (back.encoder, back.weight_hash, back.metadata) == (
        "lite0",
        "ab12",
        {"a": "1", "b": "2", "c": "ü"},
    )
    np.testing.assert_array_equal(back(features), t(features))


def test_equal_transforms_are_equal_files(tmp_path):
    code = (
        "from rsprune.embedding import Transform\nimport numpy as np\n"
        "t = Transform.fit(np.eye(2), encoder='e', metadata={str(i): 'x' for i in range(9)})\n"
        f"t.save({str(tmp_path / 'there')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    t = Transform.fit(np.eye(2), encoder="e", metadata={str(i): "x" for i in range(9)})
    t.save(tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_broken_transform_is_named(tmp_path, content):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"t\.safetensors is not a transform"):
        Transform.load(tmp_path / "t.safetensors")


def test_foreign_safetensors_is_no_transform(tmp_path):
    from safetensors.numpy import save_file

    save_file({"mean": np.zeros(2, np.float32)}, tmp_path / "t.safetensors")
    with pytest.raises(ConfigError, match=r"t\.safetensors is not a transform"):
        Transform.load(tmp_path / "t.safetensors")

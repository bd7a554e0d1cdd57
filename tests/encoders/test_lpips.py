"""LPIPS: torchvision's SqueezeNet and the formula, of the published weights."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.lpips import LPIPS, load_lpips

RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data("weights/lpips")


def theirs(folder, first, second):
    """By torchvision's layers, in float64."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision").models
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    linear, backbone = sorted(files, key=len)
    network = models.squeezenet1_1()
    state = {name: torch.from_numpy(value.astype(np.float64)) for name, value in backbone.items()}
    network.double().load_state_dict(state)
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(1, 3, 1, 1)

    @torch.no_grad()
    def features(images):
        x, found = (torch.from_numpy(images).double().permute(0, 3, 1, 2) - shift) / scale, []
        for number, layer in enumerate(network.features):
            x = layer(x)
            if number in (1, 4, 7, 9, 10, 11, 12):
                found.append((x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)).numpy())
        return found

    total = 0.0
    for number, (a, b) in enumerate(zip(features(first), features(second), strict=True)):
        weights = linear[f"lin{number}.model.1.weight"].astype(np.float64)[0, :, 0, 0]
        total = total + np.einsum("bchw,c->bhw", (a - b) ** 2, weights).mean((1, 2))
    return total


@pytest.mark.parametrize("shape", [(32, 32), (37, 50)])
def test_it_is_the_published_distance(shape, folder):
    first, second = RNG.uniform(-1, 1, (2, 3, *shape, 3)).astype(np.float32)
    second[0] = first[0]
    params, identity = load_lpips(folder)
    found = np.asarray(jax.jit(LPIPS().apply)({"params": params}, first, second))
    np.testing.assert_allclose(found, theirs(folder, first, second), rtol=1e-4, atol=1e-7)
    assert found[0] < 1e-12 and found[1:].min() > 0.01 and identity.startswith("sha256:")


def test_other_files_are_refused_by_name(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .*safetensors: must hold LPIPS' weights"):
        load_lpips(tmp_path)
    for path in folder.glob("*.safetensors"):
        shutil.copy(path, tmp_path / path.name)
    (linear,) = tmp_path.glob("lpips*")
    tensors = load_file(linear)
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, linear)
    with pytest.raises(ValueError, match="lin0.model.1.weight"):
        load_lpips(tmp_path)
    save_file(tensors, linear)
    save_file({"lin3.model.1.weight": tensors["lin3.model.1.weight"]}, tmp_path / "z.safetensors")
    with pytest.raises(ValueError, match="has lin3.model.1.weight in two files"):
        load_lpips(tmp_path)

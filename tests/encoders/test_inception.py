"""Inception v3's weights: what is read, what is left out, what is refused.

That its features are torch-fidelity's is held by tests/benchmarks/test_metric_agreement.py.
"""

import shlex
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.inception_weights import load_inception

pytest.importorskip("torch_fidelity", reason="the weights' names are torch-fidelity's module's")


@pytest.fixture(scope="module")
def torch_module():
    from tests.oracles.torch_inception import RandomInception

    return RandomInception(["2048"])


@pytest.fixture(scope="module")
def weights(torch_module, tmp_path_factory):
    """Path and tensors of a whole state dict."""
    path = torch_module.save(tmp_path_factory.mktemp("inception") / "whole.safetensors")
    return path, load_file(path)


@pytest.fixture
def changed(weights, tmp_path):
    """Returns a function: change (tensors -> tensors) -> path of a copy with it made."""

    def copy(change):
        path = tmp_path / "changed.safetensors"
        save_file(change(dict(weights[1])), path)
        return path

    return copy


def without(*prefixes):
    def change(tensors):
        return {name: x for name, x in tensors.items() if not name.startswith(prefixes)}

    return change


def parameters(params):
    return sum(x.size for x in _leaves(params))


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def test_only_what_the_features_need_is_read(weights, changed):
    _, whole, identities = load_inception(weights[0], ("64", "768"))
    assert set(identities) == {"64", "768"}
    path = changed(without("Mixed_7", "fc."))
    _, partial, same = load_inception(path, ("768", "64"))
    assert same == identities
    np.testing.assert_array_equal(
        whole["Mixed_6e"]["branch_pool"]["bias"], partial["Mixed_6e"]["branch_pool"]["bias"]
    )
    assert not {"Mixed_7a", "fc"} & set(partial)
    with pytest.raises(ValueError, match="120 missing: .*Mixed_7a.branch3x3_1.bn.bias"):
        load_inception(path, ("2048",))


def test_a_feature_s_identity_is_that_of_its_own_weights(weights, changed):
    _, _, before = load_inception(weights[0], ("768", "logits"))

    def other_head(tensors):
        return tensors | {"fc.bias": tensors["fc.bias"] + 1}

    _, _, after = load_inception(changed(other_head), ("768", "logits"))
    assert after["768"] == before["768"]
    assert after["logits"] != before["logits"]


def test_the_whole_network_is_read(weights, torch_module):
    _, params, _ = load_inception(weights[0], ("logits_unbiased",))
    batch_norms = sum(
        x.numel() for n, x in torch_module.named_parameters() if n.endswith("bn.bias")
    )
    theirs = sum(x.numel() for x in torch_module.parameters())
    assert parameters(params) == theirs - batch_norms  # scales are folded into the kernels


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("Conv2d_1a_3x3.bn.running_mean"), "1 missing: Conv2d_1a_3x3.bn.running_mean"),
        (lambda t: t | {"AuxLogits.fc.bias": t["fc.bias"]}, "1 unexpected: AuxLogits.fc.bias"),
        (
            lambda t: t | {"fc.weight": np.zeros((1000, 2048), np.float32)},
            r"1 of another shape: fc.weight is \(1000, 2048\), must be \(1008, 2048\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(changed, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_inception(changed(change), ("logits",))


def test_a_torch_file_is_refused_with_the_command_that_converts_it(weights, torch_module, tmp_path):
    import torch

    path = tmp_path / "pt_inception.pth"
    torch.save(torch_module.state_dict(), path)
    with pytest.raises(ValueError, match="is a pickle, which only torch reads") as refusal:
        load_inception(path)
    command = shlex.split(str(refusal.value).partition("installed: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    converted = load_inception(path.with_suffix(".safetensors"))
    assert converted[2] == load_inception(weights[0])[2]


def test_other_files_and_features_are_refused(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="do not exist"):
        load_inception(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_inception(tmp_path / "text.safetensors")
    for features in ((), ("1024",), ("768", "768")):
        with pytest.raises(ValueError, match="must be some of 64, 192, spatial, 768, 2048"):
            load_inception(weights[0], features)


def test_graph_weights_are_read_up_to_768_features(shared_data):
    path = shared_data("weights/inception_v3_2015/inception_v3_to_mixed_7_fp16.safetensors")
    _, params, identities = load_inception(path, ("192",))
    assert set(params) == {
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
        *("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    }
    assert identities["192"].startswith("sha256:")
    with pytest.raises(
        ValueError, match="features = 2048: .* up to mixed_7: 64, 192, spatial, 768"
    ):
        load_inception(path, ("2048",))

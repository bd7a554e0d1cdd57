"""Pictures for many requests: exactly as many, resumed to the byte, never of something else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.generation.generate import Noise, describe, generate
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.system.interruption import Interrupted

NOISE = Noise(seed=3, batch_size=4)
REQUESTS = [{"text": f"number {n}"} for n in range(11)]


@dataclasses.dataclass
class Stop:
    """A watch that is triggered at the `after`th look."""

    after: int = 10**9

    @property
    def triggered(self):
        self.after -= 1
        return self.after < 0


@pytest.fixture(scope="module")
def make_cascade(make_task, awake):  # noqa: F811
    """Returns make(devices) -> a cascade of one tiny stage on so many devices."""
    task = make_task("base")
    params = awake(task)

    def make(devices=1):
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        return Cascade([Stage("base", task, params, task.frozen, task.sampler, mesh)], mesh)

    return make


@pytest.fixture(scope="module")
def cascade(make_cascade):
    return make_cascade()


@pytest.fixture(scope="module")
def undisturbed(cascade, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    generate(cascade, describe(cascade), REQUESTS, folder, NOISE, Stop())
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "base").iterdir())}


def test_one_picture_per_request_and_they_are_what_draw_draws(cascade, undisturbed, tmp_path):
    assert list(undisturbed) == [f"{n:06d}.png" for n in range(len(REQUESTS))]
    pictures = generate(cascade, describe(cascade), REQUESTS, tmp_path, NOISE, Stop())
    drawn = cascade.draw(REQUESTS, seed=3, batch_size=4)["base"]
    expected = np.clip((drawn + 1) * 127.5, 0, 255)
    read = pictures.read("base", range(len(pictures))).astype(float)
    assert np.abs(read - expected).max() <= 0.5 + 1e-3
    assert pictures.requests == tuple(REQUESTS) and len(pictures) == 11


@pytest.mark.parametrize("devices", [8])
def test_as_many_on_any_number_of_devices(make_cascade, devices, undisturbed, tmp_path):
    cascade = make_cascade(devices)
    generate(cascade, describe(cascade), REQUESTS, tmp_path, NOISE, Stop())
    found = contents(tmp_path)
    assert list(found) == list(undisturbed)
    for name in found:
        ours = np.asarray(Image.open(tmp_path / "base" / name)).astype(int)
        (tmp_path / "one.png").write_bytes(undisturbed[name])
        assert np.abs(ours - np.asarray(Image.open(tmp_path / "one.png"))).max() <= 1


def test_stopped_work_says_where_and_goes_on_without_drawing_again(cascade, undisturbed, tmp_path):
    networks = describe(cascade)
    with pytest.raises(Interrupted, match="at picture 4, saved; the same command resumes"):
        generate(cascade, networks, REQUESTS, tmp_path, NOISE, Stop(0))
    first = contents(tmp_path)
    assert first == {name: undisturbed[name] for name in list(undisturbed)[:4]}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "base").iterdir()}
    generate(cascade, networks, REQUESTS, tmp_path, NOISE, Stop())
    assert contents(tmp_path) == undisturbed
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_killed_work_goes_on_with_what_is_whole(cascade, undisturbed, tmp_path):
    """A kill leaves some of a batch, and half a file under another name."""
    networks = describe(cascade)
    with pytest.raises(Interrupted):
        generate(cascade, networks, REQUESTS, tmp_path, NOISE, Stop(1))
    (tmp_path / "base/000005.png").unlink()
    (tmp_path / "base/000005.png.abc.tmp").write_bytes(undisturbed["000005.png"][:20])
    generate(cascade, networks, REQUESTS, tmp_path, NOISE, Stop())
    assert contents(tmp_path) == undisturbed


def test_pictures_of_something_else_are_refused_by_name(cascade, tmp_path):
    networks = describe(cascade)
    generate(cascade, networks, REQUESTS[:2], tmp_path, NOISE, Stop())
    refused = [
        (cascade, networks, REQUESTS[1:3], NOISE, "requests.sha256"),
        (cascade, networks, REQUESTS[:3], NOISE, "requests.count: 2 there, 3 here"),
        (cascade, networks, REQUESTS[:2], dataclasses.replace(NOISE, seed=4), "seed: 3 there"),
        (
            *(cascade.with_sampler(["num_steps=5"]), networks, REQUESTS[:2], NOISE),
            "stages.base.sampler.num_steps: 3 there, 5 here",
        ),
    ]
    stage = cascade.stages[0]
    other = jax.tree.map(lambda leaf: leaf + 1, stage.params)
    moved = Cascade([dataclasses.replace(stage, params=other)], stage.mesh)
    refused.append((moved, describe(moved), REQUESTS[:2], NOISE, "stages.base.network.weights"))
    for *arguments, noise, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            generate(*arguments, tmp_path, noise, Stop())


def test_pictures_that_are_not_finite_are_named_and_not_written(cascade, tmp_path):
    stage = cascade.stages[0]
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), stage.params)
    broken = Cascade([dataclasses.replace(stage, params=broken)], stage.mesh)
    with pytest.raises(ValueError, match="picture 0 of stage 'base' is not finite"):
        generate(broken, describe(broken), REQUESTS[:2], tmp_path, NOISE, Stop())
    assert contents(tmp_path) == {}


def test_memory_does_not_grow_a_batch_is_drawn_when_it_is_asked_for(cascade, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Cascade, "_draw_batch", lambda self, requests, places, *_: drawn.append(places) or {}
    )
    parts = cascade.stream(REQUESTS, batch_size=4, done={4, 5, 6, 7, 8})
    assert drawn == []
    assert next(parts)[0] == range(0, 4) and drawn == [range(0, 4)]
    assert [places for places, _ in parts] == [range(8, 11)]  # 4..7 are done, 9 and 10 are not


def test_only_stages_up_to_the_one_asked_for(cascade):
    assert [stage.name for stage in cascade.until("base").stages] == ["base"]
    with pytest.raises(ValueError, match="stage 'sr': must be one of base"):
        cascade.until("sr")
    assert cascade.with_sampler(["num_steps=3"]).stages[0] is cascade.stages[0]

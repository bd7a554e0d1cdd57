"""Variants differ in the adapter alone, results are kept, the summary is their statistics."""

import dataclasses
import json
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from etils import epath

from benchmarks import paired_measures, paired_runs, paired_tables
from benchmarks.configuration import load_config
from benchmarks.paired_variants import VARIANTS
from contextdiff_jax.config import differences, with_task
from contextdiff_jax.diffusion.weights import WeightName
from contextdiff_jax.evaluation.evaluation import Settings
from contextdiff_jax.evaluation.results import Result
from contextdiff_jax.runs.validation import validate
from tests.conftest import ROOT


def arguments(*flags):
    return paired_runs.parse(["--output=out", *flags])


def flows_differ(section, flow):
    """Returns how each flow differs from the config; flow: what all of them have."""
    shuffled = f"{section}.flow.shuffle_condition: False there, True here"
    relation = f"{section}.flow.relation: 'none' there, {{!r}} here".format
    return {
        "flow_none": flow,
        "flow_affine": {*flow, relation("affine")},
        "flow_affine_condition": {
            *flow,
            relation("affine"),
            f"{section}.flow.by_condition: False there, True here",
        },
        "flow_whitening": {*flow, relation("whitening")},
        "flow_coupling": {*flow, relation("coupling")},
        "flow_coupling_20": {
            *flow,
            relation("coupling"),
            f"{section}.flow.beta: 5.0 there, 20.0 here",
        },
        "flow_affine_shuffled": {
            *flow,
            relation("affine"),
            f"{section}.flow.by_condition: False there, True here",
            shuffled,
        },
        "flow_coupling_shuffled": {*flow, relation("coupling"), shuffled},
        "flow_schedule_1": {*flow, relation("scaled")},
        "flow_schedule_2": {
            *flow,
            relation("scaled"),
            f"{section}.flow.scale: 1.0 there, 2.0 here",
        },
        "flow_schedule_-0.35": {
            *flow,
            relation("scaled"),
            f"{section}.flow.scale: 1.0 there, -0.35 here",
        },
    }


def control(section, value):
    """Returns how an adapter differs that gets another condition."""
    return {f"{section}.adapter_condition: 'own' there, {value!r} here"}


def test_variants_differ_in_one_thing_alone():
    args = arguments("--steps=40")
    config, _, base = paired_runs.base_only(load_config("quickstart:adapter"), 3, args)
    assert config.seed == 3 and config.runs[base].steps == 40
    plain = dataclasses.asdict(config)
    found = {
        name: differences(dataclasses.asdict(change(config, base)), plain)
        for name, change in VARIANTS.items()
    }
    assert VARIANTS["bound_0.3"](VARIANTS["bound_1"](config, base), base) == config
    without = "config.use_adapter: True there, False here"
    section = "config.runs.base.task.diffusion"
    by_bound = {
        f"{section}.objective: 'simple' there, 'bound' here",
        f"{section}.loss_weight: 'min_snr_5_plus_1' there, 'x0' here",
    }
    own = config.runs[base].task.diffusion.loss_weight
    v = f"{section}.prediction: 'x0' there, 'v' here"
    for name in get_args(WeightName):
        line = f"{section}.loss_weight: {own!r} there, {name!r} here"
        weight = set() if name == own else {line}
        assert set(found.pop(f"weight_{name}")) == weight
        assert set(found.pop(f"v_weight_{name}")) == weight | {v}
    flow = {
        without,
        f"{section}.kind: 'vp' there, 'flow' here",
        f"{section}.prediction: 'x0' there, 'v' here",
        f"{section}.loss_weight: 'min_snr_5_plus_1' there, 'x0' here",
    }
    middle = f"{section}.times: 'uniform' there, 'logit_normal' here"
    as_flow = f"{section}.loss_weight: {own!r} there, 'flow' here"
    for name in [name for name in found if name.endswith("_logit_normal")]:
        more = {middle, as_flow} if name.startswith("vp_") else {middle}
        assert set(found.pop(name)) == set(found[name.removesuffix("_logit_normal")]) | more
    for name in [name for name in found if "_mean" in name]:
        del found[name]  # their own test is below
    for name in [name for name in found if name.startswith("flow_x0_")]:
        assert set(found.pop(name)) == set(found[name.replace("x0_", "")]) - {v}
    for name in [name for name in found if name.startswith("vp_v_")]:
        assert set(found.pop(name)) == set(found[name.replace("v_", "")]) | {v}

    assert {name: set(lines) for name, lines in found.items()} == {
        "vp_none": {without},
        "vp_paper": set(),
        **{f"{of}_shuffled": control(section, "shuffled") for of in ("vp", "adapter")},
        **{f"{of}_unconditional": control(section, "none") for of in ("vp", "adapter")},
        "vp_schedule_0.3": {without, f"{section}.scaled_relation: 0.0 there, 0.3 here"},
        **flows_differ(section, flow),
        "none": {without},
        "bounded": set(),
        "bound_0.3": set(),
        "bound_1": {"config.runs.base.task.adapter.limit: 0.3 there, 1.0 here"},
        "consistency": {f"{section}.relation_consistency: 0.0 there, 1.0 here"},
        "adapter_rate_0.1": {"config.runs.base.optimizer.adapter_rate: 1.0 there, 0.1 here"},
        "unbounded": {"config.runs.base.task.adapter.limit: 0.3 there, None here"},
        "bound_objective": by_bound,
        "mixed_objective": {f"{section}.objective: 'simple' there, 'mixed' here"},
        "none_bound_objective": {without, *by_bound},
    }


@pytest.mark.parametrize("name", ["flow_mean_guided", "flow_x0_mean_affine", "flow_mean_whitening"])
def test_a_mean_flow_is_its_twin_with_other_steps(name):
    args = arguments("--calls=4", "--samplers=euler,ab2")
    config, _, base = paired_runs.base_only(load_config("classes:scenes"), 0, args)
    changed = VARIANTS[name](config, base)
    validate(changed)
    twin = name.replace("mean_", "").replace("guided", "none")
    lines = differences(
        dataclasses.asdict(changed), dataclasses.asdict(VARIANTS[twin](config, base))
    )
    keys = {line.partition(":")[0].removeprefix("config.runs.base.task.") for line in lines}
    expected = {"diffusion.objective", "sampler.name", "sampler.threshold"}
    expected |= {"unet.attention_implementation"}
    if "guided" in name:
        expected |= {"sampler.guidance_scale", "diffusion.flow.mean.guidance"}
    assert keys == expected
    settings = {
        drawing.suffix: drawing.settings[0]
        for drawing in paired_runs.drawings(changed, base, args)[1:]
    }
    assert settings == {
        " at 4 calls of euler": "base.name=mean_flow",
        " at 4 calls of ab2": "base.name=ab2",
    }


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("seed=1", "0"),
        ("use_adapter=True", "False"),
        ("runs.base.task.diffusion.flow.beta=7", "5.0"),
    ],
)
def test_a_change_that_a_variant_undoes_is_refused_before_training(change, found, tmp_path):
    flags = [f"--output={tmp_path}", "--config=classes:scenes", "--variants=flow_coupling"]
    with pytest.raises(ValueError, match=f"must be left out, 'flow_coupling' here has {found}"):
        paired_runs.main([*flags, f"--config.{change}"])
    assert not list(tmp_path.iterdir())


def test_summary_is_mean_deviation_and_differences_of_pairs():
    results = {
        "none": {"0": {"fid": 0.5}, "1": {"fid": 0.7}},
        "bounded": {"0": {"fid": 0.6, "relation_rms": 0.25}, "1": {"fid": 0.6}},
    }
    rows = paired_tables.summary(results).splitlines()
    assert rows[0] == "| variant | seeds | fid | relation_rms |"
    assert rows[2:4] == ["| none | 2 | 0.6 ± 0.141 |  |", "| bounded | 2 | 0.6 ± 0 | 0.25 |"]
    assert rows[-3:-1] == ["| variant | seeds | fid |", "| --- | --- | --- |"]
    assert rows[-1].startswith("| bounded | 2 | +") and rows[-1].endswith("± 0.141 |")


def test_pairs_are_those_of_one_seed_with_each_reference():
    results = {
        "vp_none": {"0": {"fid": 1.0}, "1": {"fid": 3.0}},
        "flow_none": {"0": {"fid": 2.0}, "1": {"fid": 4.0}},
        "flow_affine": {"1": {"fid": 3.5}},
        "flow_x0_none": {"1": {"fid": 1.25}},
    }
    text = paired_tables.summary(results)
    parts = text.split("Minus ")
    assert [part[:11] for part in parts[1:]] == ["`vp_none` o", "`flow_none`", "`flow_x0_no"]
    assert "| flow_none | 2 | +1 ± 0 |" in parts[1] and "| flow_affine | 1 | +0.5 |" in parts[1]
    assert "| vp_none | 2 | -1 ± 0 |" in parts[2] and "| flow_affine | 1 | -0.5 |" in parts[2]
    assert "| flow_affine | 1 | +2.25 |" in parts[3]


def test_bits_of_a_bound_and_of_a_flow_are_told_apart():
    bound = {"bits_per_dim": 3.0, "prior": 0.1, "kl": 2.0, "decoder": 0.9, "images": 4}
    flow = {"bits_per_dim": 2.9, "prior": 2.0, "volume": -6.1, "probe_error": None}
    for values in (bound, flow):
        results = {"bits_per_dim": Result("", "", values, {})}
        found = paired_runs.figures(results, "base")
        assert found == {name: values[name] for name in values if name in paired_runs.BITS}


def test_calls_are_drawn_by_what_stands_for_a_sampler_with_an_adapter():
    args = arguments("--calls=5,9", "--samplers=ab2,heun")
    config, _, base = paired_runs.base_only(load_config("quickstart:adapter"), 0, args)
    drawn = {}
    for variant in ("flow_none", "vp_paper"):
        each = paired_runs.drawings(VARIANTS[variant](config, base), base, args)
        drawn[variant] = {drawing.suffix: drawing.settings for drawing in each}
    assert list(drawn["vp_paper"]) == ["", *(f" at {n} calls of {s}" for s, n in CALLS)]
    settings = drawn["flow_none"]
    assert settings[""] == ()
    assert settings[" at 5 calls of ab2"] == ("base.name=ab2", "base.num_steps=5", "base.eta=0")
    assert settings[" at 5 calls of heun"][:2] == ("base.name=heun", "base.num_steps=3")
    assert settings[" at 9 calls of heun"][:2] == ("base.name=heun", "base.num_steps=5")
    assert drawn["vp_paper"][" at 5 calls of ab2"][0] == "base.name=dpm_solver++"


def test_a_flow_resets_all_that_it_does_not_read():
    config = load_config("classes:latent")  # betas, an eps-network, guidance in eps
    task = config.runs["base"].task
    sampler = dataclasses.replace(task.sampler, guidance_low=2.0, guidance_high=9.0)
    config = dataclasses.replace(
        config, runs={"base": with_task(config.runs["base"], sampler=sampler)}
    )
    task = VARIANTS["flow_x0_coupling"](config, "base").runs["base"].task
    task.validate("task", config.runs["base"].data, use_adapter=False)
    assert task.diffusion.kind == "flow" and task.sampler.guidance_high is None


CALLS = [("ab2", 5), ("ab2", 9), ("heun", 5), ("heun", 9)]


def test_figures_by_calls_are_tables_of_their_own():
    results = {
        "none": {
            "0": {"place": 0.5, "place at 16 calls of ab2": 0.2, "place at 4 calls of ab2": 0.1},
            "1": {"place": 0.5, "place at 16 calls of ab2": 0.4, "place at 4 calls of ab2": 0.1},
        },
        "flow_none": {
            "0": {"place at 16 calls of ab2": 0.5, "place at 16 calls of euler": 0.7},
            "1": {"place at 16 calls of ab2": 0.5},
        },
    }
    assert paired_tables.summary(results).splitlines()[0] == "| variant | seeds | place |"
    text = paired_tables.by_calls(results)
    assert text.splitlines()[:11] == [
        "## place, by network calls",
        "",
        "| variant | sampler | 4 | 16 |",
        "| --- | --- | --- | --- |",
        "| none | ab2 | 0.1 ± 0 | 0.3 ± 0.141 |",
        "| flow_none | ab2 |  | 0.5 ± 0 |",
        "| flow_none | euler |  | 0.7 |",
        "",
        "Minus `none` of the same seed and sampler:",
        "",
        "| variant | sampler | 16 |",
    ]
    assert "| flow_none | ab2 | +0.2 ± 0.141 |" in text
    assert paired_tables.by_calls({"none": {"0": {"place": 0.5}}}) == ""


def test_the_plot_has_a_line_with_its_spread_for_each_variant_and_sampler(tmp_path):
    fid = "Frechet distance on CLIP features"
    results = {
        variant: {
            seed: {
                f"{fid} at {calls} calls of {sampler}": (place + 1) * 2 / calls + int(seed)
                for calls in (4, 8)
                for sampler in ("euler", "ab2")
            }
            for seed in ("0", "1")
        }
        for place, variant in enumerate(("vp_none", "flow_none"))
    }
    found = paired_tables.panels_of(results)
    assert [panel.get_title(loc="left") for panel in found] == [f"{fid}, euler", f"{fid}, ab2"]
    lines = {bars.get_label(): bars for bars in found[0].containers}
    assert list(lines) == ["vp_none", "flow_none"]
    line, _, (bars,) = lines["flow_none"]
    assert line.get_xydata().tolist() == [[4, 1.5], [8, 1.0]]
    spread = np.std([0, 1], ddof=1)
    for (low, high), (_, mean) in zip(bars.get_segments(), line.get_xydata(), strict=True):
        np.testing.assert_allclose([low[1], high[1]], [mean - spread, mean + spread])
    assert paired_tables.plot(results, epath.Path(tmp_path) / "calls.png")
    assert (tmp_path / "calls.png").read_bytes().startswith(b"\x89PNG")
    assert not paired_tables.plot({"none": {"0": {"place": 0.5}}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_speed_of_drawing_leaves_out_the_batch_that_compiles(tmp_path, monkeypatch):
    clock = iter([0, 60, 60, 62, 63, 67, 68, 71])  # a batch's beginning and end, in turn
    monkeypatch.setattr(paired_measures.time, "perf_counter", lambda: next(clock))
    asked = []

    class Drawn:  # stands for a cascade of 4 pictures at a time
        def stream(self, requests, *, seed):
            asked.append((requests, seed))
            yield from (range(4 * number, 4 * number + 4) for number in range(3))

        def whole_batch(self, batch_size, count):
            return min(batch_size, count)

    class Finished:
        output, settings = tmp_path, Settings("", batch_size=4)

        def draw(self, captions, folder, cascade):
            (tmp_path / folder).mkdir(exist_ok=True)
            list(cascade.stream(captions, seed=3) if not asked else ())
            return "pictures"

    for _ in range(2):  # the second time everything is there, and so is the speed
        found = paired_measures.drawn(Finished(), ("a",) * 12, "ab2", Drawn())
        assert found == ("pictures", 4 / 3)
    assert asked == [(("a",) * 12, 3)]


@pytest.mark.slow
def test_command(tmp_path):
    flags = [f"--output={tmp_path}", "--config=quickstart:test", "--variants=bounded"]
    flags += ["--seeds=0", "--count=8", "--steps=4", "--what=scenes,fid", "--guidance=6"]
    flags += ["--calls=2", "--samplers=ab2", "--sampler=guidance_scale=2"]
    # A child of its own sees one device, and compiles for one.
    command = [sys.executable, "-m", "benchmarks.paired_runs", *flags]
    subprocess.run(command, check=True, cwd=ROOT)
    path = tmp_path / "0/bounded/result.json"
    kept = json.loads(path.read_text())
    fid, calls = "Frechet distance on CLIP features", "at 2 calls of ab2"
    assert set(kept["figures"]) >= {
        *("colour and shape", "colour and shape, guidance 6", f"colour and shape {calls}"),
        *(fid, f"{fid} {calls}", f"precision {calls}", f"recall {calls}", "loss", "relation_rms"),
    }
    assert "## Frechet distance" in (tmp_path / "calls.md").read_text()
    assert (tmp_path / "calls.png").exists()
    assert (tmp_path / "0/bounded/check/report.html").exists()
    assert len(list(tmp_path.glob("**/reference_*"))) == 1  # for every seed and variant
    assert len(list((tmp_path / "reference").iterdir())) == 1
    kept["figures"]["loss"] = 42.0
    path.write_text(json.dumps(kept))
    assert paired_runs.main(flags)["bounded"]["0"]["loss"] == 42.0
    with pytest.raises(ValueError, match="is of another call"):
        paired_runs.main([*flags, "--count=9"])
    kept["config"]["runs"]["base"]["task"]["sampler"]["guidance_scale"] = 9.0
    path.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="is of another call"):
        paired_runs.main(flags)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--variants=none,best", "variants = 'best': must be one of none, bounded"),
        ("--what=fid,cost", "what = 'cost': must be one of scenes, fid"),
        ("--count=1", "count = 1: must be at least 2"),
        *(
            (
                f"--config=quickstart --variants={name}",
                "runs.base.task.diffusion.kind = 'flow': must be 'vp' for variants of the paper",
            )
            for name in ("vp_none", "none", "bounded", "weight_x0")
        ),
        ("--config=classes:latent", "config = 'classes:latent': must have a run that trains"),
        ("--sampler=steps=4", "--sampler=steps=4: field must be one of"),
        ("--seeds=1,x", "seeds = 'x': must be whole numbers"),
        ("--guidance=3,-1", "guidance = -1: must be numbers from 0"),
        ("--calls=4,0", "calls = '0': must be whole numbers in 1..1000"),
        (
            "--calls=5,8 --samplers=heun --variants=none",
            "calls = 8: must be odd where --samplers has heun, n steps of which that end at time 0",
        ),
        (
            "--calls=5 --samplers=heun --variants=none --sampler=final_timestep=1",
            "calls = 5: must be even where --samplers has heun, .* at time 1 are 2 n calls",
        ),
        ("--samplers=unipc", "samplers = 'unipc': must be one of euler, ab2"),
        (
            "--calls=5 --samplers=heun --variants=vp_paper",
            "sampler.name = 'heun': not with an adapter",
        ),
        (
            "--features=none.safetensors",
            "features = 'none.safetensors': must be 'clip' or a file",
        ),
        ("--guidance=nan", "guidance = nan: must be numbers from 0"),
        ("--what=bits_per_dim --guidance=6", "guidance = .*: changes scenes and fid alone"),
        ("--config=cifar10:cpu", "what = 'scenes': cifar10:cpu trains on 'tfds'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, flag, sentence):
    with pytest.raises(ValueError, match=sentence):
        paired_runs.main([f"--output={tmp_path}", *flag.split()])

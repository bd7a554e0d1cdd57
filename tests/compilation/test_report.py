"""Verdicts, advice and knobs from made-up figures."""

import dataclasses
import types

import pytest

from configs import laion
from contextdiff_jax.compilation import report
from contextdiff_jax.config import from_config_dict, with_task
from contextdiff_jax.parallel.topologies import CHIPS, GIB
from contextdiff_jax.runs.device_memory import knobs

HLO = """HloModule m

ENTRY main (x: f32[1024,1024]) -> f32[1024,1024] {
  %x = f32[1024,1024] parameter(0)
  %s = f32[1024,1024] all-reduce(%x), replica_groups={{0,1,2,3}}
  %small = bf16[8,8] constant({...})
  ROOT %r = f32[1024,512] dot(%s, %x), lhs_contracting_dims={1}, metadata={op_name="jit(f)/dot"}
}
"""
TRANSFER = """  %t = token[] after-all()
  %part = f32[512,512] constant({...})
  %sent = (f32[512,512], token[]) send(%part, %t), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
"""  # noqa: E501
MESH = {"data": 2, "fsdp": 2, "tensor": 1}
KNOBS = {"arguments": "Turn fsdp.", "temporaries": "Turn the batch."}


def compiled(arguments, temporaries, results=0, aliased=0, code=0, text=HLO):
    memory = types.SimpleNamespace(
        argument_size_in_bytes=arguments,
        temp_size_in_bytes=temporaries,
        output_size_in_bytes=results,
        alias_size_in_bytes=aliased,
        generated_code_size_in_bytes=code,
    )
    return types.SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: memory)


def made_up(chip="v5e", slices=1, **memory):
    text = HLO if slices == 1 else HLO.replace("  ROOT", f"{TRANSFER}  ROOT")
    figures = report.measure(compiled(text=text, **memory), CHIPS.get(chip), 4, 8e9, slices)
    return report.Report(
        config="laion",
        run="base",
        what="train",
        topology="v5e:2x2",
        chips=4,
        mesh=MESH,
        batch_size=64,
        parameters=1_000_000,
        model_flops=8e9,
        lower_s=1.0,
        compile_s=2.0,
        effort=-1.0,
        versions={},
        slices=slices,
        **figures,
    )


def test_figures_follow_from_the_program():
    found = made_up(
        arguments=6 * GIB, temporaries=2 * GIB, results=5 * GIB, aliased=4 * GIB, code=7
    )
    assert found.peak_bytes == 9 * GIB + 7
    assert found.fits is True
    products, sent = 2 * 1024 * 512 * 1024, 2 * 1024 * 1024 * 4 * 3 / 4
    assert found.compiled_flops == products
    assert found.flops_ratio == products * 4 / 8e9
    assert found.compute_s == products / 197e12
    assert found.network_s == sent / 200e9
    assert found.memory_s == found.traffic_bytes / 819e9
    assert found.step_s == max(found.compute_s, found.network_s, found.memory_s)
    assert found.largest == [
        (4 * 1024 * 1024, "f32[1024,1024]", "s"),
        (2 * 1024 * 1024, "f32[1024,512]", "jit(f)/dot"),
    ]
    assert "fits: 14.00 GiB usable of 16.00 GiB HBM" in report.describe(found)


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_an_eighth_of_hbm_is_not_usable(more, fits):
    found = made_up(arguments=7 * GIB, temporaries=7 * GIB + more)
    assert found.fits is fits
    assert ("DOES NOT FIT" in report.describe(found)) is not fits


def test_of_an_unknown_chip_there_is_no_verdict():
    found = made_up(chip="cpu", arguments=100 * GIB, temporaries=0)
    assert found.fits is None
    assert found.step_s is None
    assert "FIT" not in report.describe(found)
    assert "roofline" not in report.describe(found)


@pytest.mark.parametrize(
    ("arguments", "temporaries", "begin", "order"),
    [
        (12, 8, "arguments take 12.00 GiB of 20.00 GiB per chip, temporaries 8", KNOBS.values()),
        (5, 16, "temporaries take 16.00 GiB of 21.00 GiB per chip, arguments 5", None),
    ],
)
def test_advice_begins_with_what_takes_most(arguments, temporaries, begin, order):
    found = made_up(arguments=arguments * GIB, temporaries=temporaries * GIB)
    lines = report.advice(found, KNOBS).splitlines()
    assert lines[0].startswith(begin)
    assert "14.00 GiB are usable" in lines[0]
    assert lines[1:3] == ["  0.00 GiB f32[1024,1024] s", "  0.00 GiB f32[1024,512] jit(f)/dot"]
    assert lines[3:] == list(order or reversed(KNOBS.values()))


@pytest.mark.parametrize(("slices", "share"), [(2, 1.0), (4, 1.5)])
def test_the_network_between_slices_is_part_of_the_roofline(slices, share):
    memory = {"arguments": 1, "temporaries": 1}
    found = made_up(slices=slices, **memory)
    seconds = share * 512 * 512 * 4 / 3.125e9  # 25 Gbit/s a chip
    assert found.between_slices_s == pytest.approx(seconds)
    assert found.step_s == found.between_slices_s > found.network_s
    shown = report.describe(found)
    assert f", between slices {seconds:.3f}; MFU" in shown and "not counted" not in shown
    assert "between slices" not in report.describe(made_up(**memory))


def test_a_network_of_unknown_speed_is_said_to_be_missing():
    found = made_up(chip="v4", slices=2, arguments=1, temporaries=1)
    assert found.between_slices_s is None and found.sent_between_slices[1] == 512 * 512 * 4
    assert "not counted      the time between slices" in report.describe(found)


LONG = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.88G of 15.75G hbm.

Total hbm usage >= 21.13G:
    program          20.88G

  Largest program allocations in hbm:

  1. Size: 4.00G
     Shape: f32[1024,1024]
"""


def test_of_the_compilers_message_totals_and_largest_allocations_stay():
    more = "\n".join(f"  {n}. Size: 1.00G\n     Shape: f32[{n}]" for n in range(2, 99))
    error = report.OutOfMemory({"run": "base"}, LONG + more)
    for words in ("Used 20.88G of 15.75G", "program          20.88G", "1. Size: 4.00G", "f32[3]"):
        assert words in str(error)
    assert "f32[90]" not in str(error)
    assert str(error).endswith(" ...")
    assert error.figures == {"run": "base", "fits": False, "compiler": LONG + more}
    assert not report.excerpt(LONG).endswith("...")


def config_of(preset="", **unet):
    config = from_config_dict(laion.get_config(preset))
    runs = dict(config.runs)
    if unet:
        network = dataclasses.replace(runs["base"].task.unet, **unet)
        runs["base"] = with_task(runs["base"], unet=network)
    return dataclasses.replace(config, runs=runs)


def both(*args):
    return "\n".join(knobs(*args).values())


def test_remat_is_a_knob_where_it_is_not_all_turned():
    assert "unet.remat = 'blocks' (now 'none')" in both(
        config_of(remat="none"), "base", "train", MESH, 64
    )
    assert "remat_levels = 0, all (now 1)" in both(
        config_of(remat="blocks", remat_levels=1), "base", "train", MESH, 64
    )
    turned = config_of(remat="blocks", remat_levels=0)
    assert "remat" not in both(turned, "base", "train", MESH, 64)
    assert "remat" not in both(config_of("tiny"), "clip", "train", MESH, 64)


def test_sampling_has_no_knobs_of_training():
    text = both(config_of(remat="none"), "base", "sample", MESH, 32)
    assert "a smaller batch_size (now 32)" in text
    assert "larger mesh.fsdp (now 2, at most 4) splits parameters further" in text
    for words in ("remat", "accumulation", "moments", "EMA"):
        assert words not in text


def test_knobs_at_their_end_are_not_named():
    text = both(config_of(remat="blocks", remat_levels=0), "base", "train", MESH, 4)
    assert "batch_size" not in text
    assert "accumulation" not in text
    assert "chips with more memory" in text
    split = {"data": 2, "fsdp": 4, "tensor": 1}
    assert "a larger mesh.fsdp (now 4" not in both(config_of(), "base", "train", split, 64, 2)
    assert "Only a slice of more chips" in both(config_of(), "base", "train", split, 64, 2)
    assert "A larger mesh.fsdp (now 4, at most 8)" in both(
        config_of(), "base", "train", split, 64, 1
    )

"""The variants of `paired_runs`: how each changes a config.

By its name, in one thing alone:
  none                  plain diffusion
  bounded               the config's adapter
  bound_0.3, bound_1    the same with these bounds of |r|
  consistency           the adapter is held to make of an estimate what it makes of the image
  adapter_shuffled      the adapter gets another picture's condition: does context matter?
  adapter_unconditional the adapter gets no condition
  adapter_rate_0.1      the adapter learns at a tenth of the denoiser's rate
  unbounded             nothing keeps the relation from growing (the warning of method, section 4)
  bound_objective       the config's adapter, trained by the exact bound (diffusion.objective)
  mixed_objective       the denoiser by the config's loss, the adapter by the bound
  none_bound_objective  plain diffusion, trained by the bound
  weight_NAME           the config's adapter, with this diffusion.loss_weight
  v_weight_NAME         the same, the denoiser predicting v
  vp_none, vp_paper     the first two, by these names beside those of kind flow (docs/flow.md);
                        vp_shuffled, vp_unconditional: the adapter's controls;
                        vp_schedule_0.3: r = 0.3 x0 without an adapter, another schedule alone
  vp_v_NAME             these, the denoiser predicting v
  flow_none             flow matching, uniform times
  flow_affine           with an affine relation by kinetic energy; flow_affine_condition: one that
                        depends on the condition
  flow_whitening        with the relation fitted to the data
  flow_coupling         with a learned coupling, beta 5; flow_coupling_20: beta 20
  flow_affine_shuffled, flow_coupling_shuffled
                        the relation is told another picture's condition: does context matter?
  flow_schedule_NUMBER  r = NUMBER x0: another schedule, and no relation
  flow_x0_NAME          these of kind flow, the network predicting the landing (prediction x0)
  flow_mean             MeanFlow; flow_mean_whitening, flow_mean_affine: on these relations' paths
  flow_mean_guided      the same, which has learned the config's guidance: one network call a step
  flow_mean_power_0     the same as flow_mean, the errors of steps left as they are
  flow_x0_mean_NAME     MeanFlow, the network predicting the landing
  vp_NAME_logit_normal, flow_NAME_logit_normal
                        any of these with logit-normal times, of kind vp by the flow's loss weight,
                        too: then the loss weighs an error of x0 at an snr as the flow's does
"""

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

from contextdiff_jax.config import Config, with_task
from contextdiff_jax.diffusion.weights import WeightName
from contextdiff_jax.tasks.diffusion_config import UNREAD_BY_FLOW, DiffusionConfig
from contextdiff_jax.tasks.flow_config import FlowConfig, MeanFlowConfig

# From a config and the name of its base run to the config of the variant.
Variant = Callable[[Config, str], Config]


def _changed(part: str, **changes: Any) -> Variant:
    """Returns the change of some fields of a section of the base run, or of its task."""

    def change(config: Config, base: str) -> Config:
        run = config.runs[base]
        if hasattr(run, part):
            section = dataclasses.replace(getattr(run, part), **changes)
            run = dataclasses.replace(run, **{part: section})
        else:
            section = dataclasses.replace(getattr(run.task, part), **changes)
            run = with_task(run, **{part: section})
        return dataclasses.replace(config, runs={**config.runs, base: run})

    return change


def _without_adapter(config: Config, base: str) -> Config:
    return dataclasses.replace(config, use_adapter=False)


def _one_after_another(*variants: Variant) -> Variant:
    """Returns the change that all of these make, in this order."""

    def change(config: Config, base: str) -> Config:
        for variant in variants:
            config = variant(config, base)
        return config

    return change


def _refusing_flows(variant: Variant) -> Variant:
    """Returns the variant, which a config of another kind does not have."""

    def change(config: Config, base: str) -> Config:
        kind = config.runs[base].task.diffusion.kind
        if kind != "vp":
            raise ValueError(
                f"runs.{base}.task.diffusion.kind = {kind!r}: must be 'vp' for variants of the "
                "paper's process; take another config"
            )
        return variant(config, base)

    return change


_TIMES = ("times", "time_mean", "time_std")
_MIDDLE = _changed("diffusion", times="logit_normal")
_WEIGHED_AS_FLOW = _changed("diffusion", times="logit_normal", loss_weight="flow")
_BY_V = _changed("diffusion", prediction="v")
_BY_BOUND = _changed("diffusion", objective="bound", loss_weight="x0")
VARIANTS: dict[str, Variant] = {
    "none": _without_adapter,
    "bounded": lambda config, base: config,
    "bound_0.3": _changed("adapter", limit=0.3),
    "bound_1": _changed("adapter", limit=1.0),
    "consistency": _changed("diffusion", relation_consistency=1.0),
    "adapter_shuffled": _changed("diffusion", adapter_condition="shuffled"),
    "adapter_unconditional": _changed("diffusion", adapter_condition="none"),
    "adapter_rate_0.1": _changed("optimizer", adapter_rate=0.1),
    "unbounded": _changed("adapter", limit=None),
    "bound_objective": _BY_BOUND,
    "mixed_objective": _changed("diffusion", objective="mixed"),
    "none_bound_objective": _one_after_another(_BY_BOUND, _without_adapter),
}
for _name in get_args(WeightName):
    VARIANTS[f"weight_{_name}"] = _changed("diffusion", loss_weight=_name)
    VARIANTS[f"v_weight_{_name}"] = _changed("diffusion", prediction="v", loss_weight=_name)
_OF_VP: dict[str, Variant] = {
    "none": VARIANTS["none"],
    "paper": VARIANTS["bounded"],
    "shuffled": VARIANTS["adapter_shuffled"],
    "unconditional": VARIANTS["adapter_unconditional"],
    "schedule_0.3": _one_after_another(
        _changed("diffusion", scaled_relation=0.3), _without_adapter
    ),
}
for _name, _by_x0 in _OF_VP.items():
    for _kind, _by in (("vp", _by_x0), ("vp_v", _one_after_another(_BY_V, _by_x0))):
        VARIANTS[f"{_kind}_{_name}"] = _by
        VARIANTS[f"{_kind}_{_name}_logit_normal"] = _one_after_another(_by, _WEIGHED_AS_FLOW)
# All until here are of the paper's process: an adapter, a bound or a weight of the loss.
VARIANTS = {name: _refusing_flows(variant) for name, variant in VARIANTS.items()}


def _flow(prediction: str = "v", **settings: Any) -> Variant:
    """Returns the change to kind flow with these settings of its section.

    What a flow does not read, of the process and of the sampler, is as it is by default.
    """
    plain = DiffusionConfig(kind="flow", flow=FlowConfig(**settings), prediction=prediction)
    read = ("kind", "flow", "prediction", "objective", *_TIMES, *UNREAD_BY_FLOW)
    process = _changed("diffusion", **{name: getattr(plain, name) for name in read})
    mixing = _changed("sampler", guidance_space="x0", guidance_low=None, guidance_high=None)
    euler = _changed("sampler", name="euler", eta=0.0)

    def change(config: Config, base: str) -> Config:
        sampler = config.runs[base].task.sampler
        if sampler.name in ("ddpm", "plms") or sampler.eta:  # not of all relations on the flow
            config = euler(config, base)
        return _without_adapter(process(mixing(config, base), base), base)

    return change


_FLOWS: dict[str, dict[str, Any]] = {
    "none": {},
    "affine": {"relation": "affine"},
    "affine_condition": {"relation": "affine", "by_condition": True},
    "whitening": {"relation": "whitening"},
    "coupling": {"relation": "coupling"},
    "coupling_20": {"relation": "coupling", "beta": 20.0},
    "affine_shuffled": {"relation": "affine", "by_condition": True, "shuffle_condition": True},
    "coupling_shuffled": {"relation": "coupling", "shuffle_condition": True},
    "schedule_-0.35": {"relation": "scaled", "scale": -0.35},
    "schedule_1": {"relation": "scaled", "scale": 1.0},
    "schedule_2": {"relation": "scaled", "scale": 2.0},
}


def _mean_flow(
    prediction: str, *, learned: bool = False, power: float = 1.0, **settings: Any
) -> Variant:
    """Returns the change to MeanFlow; learned: whether the network learns the sampler's guidance.

    power: of the weight of steps. It draws by steps of mean velocities, which no threshold fits.
    """
    drawn = _changed("sampler", name="mean_flow", eta=0.0, threshold="none", max_threshold=None)
    trained = _changed("diffusion", objective="mean_flow")

    def change(config: Config, base: str) -> Config:
        scale = config.runs[base].task.sampler.guidance_scale if learned else 1.0
        mean = MeanFlowConfig(guidance=scale, power=power)
        config = trained(drawn(_flow(prediction, mean=mean, **settings)(config, base), base), base)
        if learned:
            config = _changed("sampler", guidance_scale=1.0)(config, base)
        for name, network in config.runs[base].task.networks().items():
            if name != "adapter" and hasattr(network, "attention_implementation"):
                config = _changed(name, attention_implementation="xla")(config, base)
        return config

    return change


_MEAN_FLOWS: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean_whitening": {"relation": "whitening"},
    "mean_affine": {"relation": "affine"},
    "mean_guided": {"learned": True},
    "mean_power_0": {"power": 0.0},
}


_OF_FLOW = {name: _flow(**settings) for name, settings in _FLOWS.items()}
_OF_FLOW |= {name: _mean_flow("v", **more) for name, more in _MEAN_FLOWS.items()}
_OF_FLOW |= {f"x0_{name}": _flow("x0", **settings) for name, settings in _FLOWS.items()}
_OF_FLOW |= {f"x0_{name}": _mean_flow("x0", **more) for name, more in _MEAN_FLOWS.items()}
for _name, _by in _OF_FLOW.items():
    VARIANTS[f"flow_{_name}"] = _by
    VARIANTS[f"flow_{_name}_logit_normal"] = _one_after_another(_by, _MIDDLE)

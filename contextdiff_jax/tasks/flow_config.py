"""The configuration of kind flow: flow matching, and what may bend its path (docs/flow.md)."""

import dataclasses
import math
from typing import Literal

from contextdiff_jax.networks.flow_relations import GROUPS
from contextdiff_jax.system.limits import most
from contextdiff_jax.system.unread import check_default


@dataclasses.dataclass(frozen=True)
class MeanFlowConfig:
    """What objective mean_flow reads.

    share: of the examples that learn the mean velocity over a step; the others learn the velocity,
    which the steps are built on.
    power: a step with the squared error e has a weight proportional to (e + 0.001)^-power; their
    mean over a batch is 1. With 0 steps have no weights, with 1 each adds the same to the loss.
    guidance: w of classifier-free guidance that the network learns, so that one network call a step
    draws with it; 1 is none.
    """

    share: float = dataclasses.field(default=0.25, metadata=most(1))
    power: float = dataclasses.field(default=1.0, metadata=most(1))
    guidance: float = dataclasses.field(default=1.0, metadata=most(1000))

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if not 0 < self.share < 1:
            raise ValueError(f"{where}.share = {self.share}: must be above 0, and below 1")
        if not 0 <= self.power <= 1:
            raise ValueError(f"{where}.power = {self.power}: must be in [0, 1]")
        if not 0 < self.guidance < math.inf:
            raise ValueError(f"{where}.guidance = {self.guidance}: must be above 0")


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Flow matching on the path (1 - t) x0 + t eps, and its relation.

    shift: of the times, see `LinearPath`; above 1 for more noise. shift_reference: the side of
    pictures at which `shift` holds; others take shift * side / shift_reference. 0: all take it.
    relation: what x_t holds beside x0 and noise.
        none: nothing.
        affine: t (1 - t) r with r affine in x0, trained for the least kinetic energy (KEA).
        whitening: the same, r fitted to the data and never trained (GL).
        coupling: the noise itself leans to x0, at the price of beta KL(z || N(0, I)) (L).
        scaled: t (1 - t) r with r = scale x0, a control: another schedule, and no relation.
    by_condition: of affine alone: whether r depends on the condition, too. modes: the side of the
    block of lowest frequencies where it does. width: of the network that reads the condition, and
    of coupling's. limit: of |slope| and |offset| of affine.
    beta: of coupling alone. scale: of scaled alone, above -1, so that x_t keeps the sign of x0.
    shuffle_condition: a control: the relation is told the condition of another picture of the
    batch. For what reads one: affine by_condition, and coupling.
    mean: of diffusion.objective mean_flow alone.
    """

    shift: float = dataclasses.field(default=1.0, metadata=most(10**6))
    shift_reference: int = dataclasses.field(default=0, metadata=most(4096))
    relation: Literal["none", "affine", "whitening", "coupling", "scaled"] = "none"
    by_condition: bool = False
    modes: int = dataclasses.field(default=8, metadata=most(256))
    width: int = dataclasses.field(default=64, metadata=most(2**14))
    limit: float = dataclasses.field(default=3.0, metadata=most(10**6))
    beta: float = dataclasses.field(default=5.0, metadata=most(10**6))
    scale: float = dataclasses.field(default=1.0, metadata=most(10**6))
    shuffle_condition: bool = False
    mean: MeanFlowConfig = MeanFlowConfig()

    @property
    def learns(self) -> bool:
        """Whether the relation has parameters that train."""
        return self.relation in ("affine", "coupling")

    @property
    def ancestral(self) -> bool:
        """Whether x_t given x0 is noise around a known mean, as ancestral steps need it."""
        return self.relation != "coupling"

    def shift_at(self, resolution: int) -> float:
        """Returns the shift of the times for pictures of this side."""
        return self.shift * (resolution / self.shift_reference if self.shift_reference else 1.0)

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        self.mean.validate(f"{where}.mean")
        for key in ("shift", "limit", "beta"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be above 0")
        for key, least in (("shift_reference", 0), ("modes", 1), ("width", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least {least}")
        if self.relation == "coupling" and self.width % GROUPS:
            raise ValueError(f"{where}.width = {self.width}: must be a multiple of {GROUPS}")
        if not -1 < self.scale < math.inf:
            raise ValueError(f"{where}.scale = {self.scale}: must be above -1")
        if self.relation != "affine":
            reader = f"relation {self.relation!r} does not read it"
            check_default(self, "by_condition", where, reader)
        if self.shuffle_condition and not (self.by_condition or self.relation == "coupling"):
            raise ValueError(
                f"{where}.shuffle_condition = True: must be False, relation {self.relation!r} "
                "reads no condition here"
            )
        self._check_unread(where)

    def _check_unread(self, where: str) -> None:
        """What the relation does not read must be as it is by default."""
        coupling = self.relation == "coupling"
        for key, read, reader in (
            ("limit", self.relation == "affine", "relation 'affine'"),
            ("modes", self.by_condition, "by_condition = True"),
            ("width", self.by_condition or coupling, "by_condition = True or relation 'coupling'"),
            ("beta", coupling, "relation 'coupling'"),
            ("scale", self.relation == "scaled", "relation 'scaled'"),
        ):
            if not read:
                check_default(self, key, where, f"{reader} alone reads it")

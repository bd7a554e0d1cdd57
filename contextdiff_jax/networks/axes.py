"""Logical axis names of parameters: the one table that sharding rules are written against.

Every parameter is created through ``flax.linen.with_logical_partitioning`` with one name of this
table per array axis. The names say what an axis means; ``parallel`` decides which mesh axis each
name is split over. No parameter carries the same name twice.
"""

from types import MappingProxyType

EMBED = "embed"
CONTEXT = "context"
HEADS = "heads"
MLP = "mlp"
CONV_IN = "conv_in"
CONV_OUT = "conv_out"
KERNEL_HEIGHT = "kernel_height"
KERNEL_WIDTH = "kernel_width"
KERNEL_TIME = "kernel_time"
NORM = "norm"
PATCH = "patch"
MODULATION = "modulation"
VOCAB = "vocab"
POSITION = "position"
LAYERS = "layers"
RANK = "rank"

# Mesh axes that activations are split over.
BATCH_MESH_AXES = ("data", "fsdp")
HEADS_MESH_AXIS = "tensor"
# Parameters' axes that stay split where they are used: the outputs of layers (and heads). The
# others are put together just before.
SPLIT_IN_USE = (HEADS, MLP, VOCAB, CONV_OUT, MODULATION)

AXES = MappingProxyType(
    {
        EMBED: "width of the token, feature or embedding vector a dense layer reads or writes",
        CONTEXT: "width of condition tokens as an encoder delivers them (text or image)",
        HEADS: "attention heads times head dimension, head-major",
        MLP: "hidden width of an MLP, or the first output of the time MLP",
        CONV_IN: "input channels of a convolution",
        CONV_OUT: "output channels of a convolution, or of what is added to or scales them",
        KERNEL_HEIGHT: "height of a convolution kernel; too short to split",
        KERNEL_WIDTH: "width of a convolution kernel; too short to split",
        KERNEL_TIME: "length of a convolution kernel over frames; too short to split",
        NORM: "scale and bias of a normalization layer; small, kept replicated",
        PATCH: "pixels times channels of one image patch",
        MODULATION: "adaptive LayerNorm vectors: number of modulations, or that times the width",
        VOCAB: "rows of an embedding table",
        POSITION: "rows of a learned position table",
        RANK: "rank of an update by two matrices; too short to split",
        LAYERS: "stack of identical blocks traversed by a scan; never split",
    }
)

"""Training on precomputed text tokens: are they what the config's encoders would compute?"""

from absl import logging

from contextdiff_jax.config import Config, EncoderRef, RunConfig
from contextdiff_jax.data.embedding_shards import StoredEncoder
from contextdiff_jax.data.embeddings import Embeddings
from contextdiff_jax.data.example import Source
from contextdiff_jax.encoders.frozen import text_encoder_identity
from contextdiff_jax.runs.build import Locate, text_references


def open_embeddings(
    config: Config, run: RunConfig, source: Source, locate: Locate
) -> Embeddings | None:
    """Opens the run's embeddings; None where it has none.

    An encoder whose folder is not on this machine is taken on trust, by the identity recorded.
    Raises DataError (ValueError) naming both sides where they were made by other encoders, of
    other data or cut at another length.
    """
    folder = run.data.embeddings
    if not folder:
        return None
    references = text_references(config)
    embeddings = Embeddings(folder, tuple(references))
    for name, ref in references.items():
        stored = embeddings.metadata.encoders.get(name)
        if stored is None:
            raise ValueError(
                f"the embeddings in {folder} hold tokens of "
                f"{', '.join(embeddings.metadata.encoders)}, the run reads {name} too "
                f"(config.encoders.{name}): make them with config.use_adapter=True"
            )
        _check_encoder(folder, name, stored, ref, locate)
    embeddings.check_source(source)
    logging.info("text tokens are read from %s, no text encoder is loaded", folder)
    return embeddings


def _check_encoder(
    folder: str, name: str, stored: StoredEncoder, ref: EncoderRef, locate: Locate
) -> None:
    where = locate(ref)
    if where.exists():
        identity, max_length = text_encoder_identity(where, ref.max_length)
    else:
        logging.info("no %s encoder at %s: trusting the embeddings' %s", name, where, stored)
        identity, max_length = stored.identity, ref.max_length or stored.max_length
    if identity != stored.identity:
        raise ValueError(
            f"the embeddings in {folder} were made by the {name} encoder {stored.identity}, "
            f"config.encoders.{name}.path = {ref.path!r} is {identity}"
        )
    if max_length != stored.max_length:
        raise ValueError(
            f"the embeddings in {folder} were cut at {stored.max_length} {name} tokens, "
            f"config.encoders.{name} has {max_length}"
        )

"""ContextDiff in JAX/Flax: contextualized diffusion from one laptop core to TPU pods."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and any("contextdiff_jax." in word for word in sys.orig_argv):
    # Python looks for the program of `python -m contextdiff_jax.main` to run: nothing comes before.
    from contextdiff_jax.system import notices

    notices.end_at_once()

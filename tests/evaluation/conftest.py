"""The tiny tasks of tests/tasks, and their encoders."""

from tests.data.conftest import picture_bytes  # noqa: F401
from tests.tasks.conftest import (  # noqa: F401
    awake,
    clip_folder,
    knows_the_image,
    make_batch,
    make_config,
    make_task,
)

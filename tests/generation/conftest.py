"""The tiny tasks of tests/tasks, and their encoders."""

from tests.tasks.conftest import awake, clip_folder, make_batch, make_config, make_task  # noqa: F401

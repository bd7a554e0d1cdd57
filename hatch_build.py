"""What the wheel depends on: read from the requirements files, which stay the one source."""

import pathlib

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CustomMetadataHook(MetadataHookInterface):
    """Fills in what pyproject.toml calls dynamic; hatchling looks for this name."""

    def update(self, metadata: dict) -> None:
        tested = self._own("requirements-test.txt")
        metadata["dependencies"] = self._own("requirements-base.txt")
        metadata["optional-dependencies"] = {
            "tpu": [line for line in tested if line.startswith("jax[tpu]")],
            "cuda": ['jax[cuda13]; sys_platform == "linux"'],
            "gcs": ["etils[epath-gcs]"],
            "tensorboard": [line for line in tested if line.startswith("tensorflow")],
            "video": [line for line in tested if line.startswith("av>")],
            "beam": self._own("requirements-beam.txt"),
            "docs": self._own("requirements-docs.txt"),
            "test": tested,
        }

    def _own(self, name: str) -> list[str]:
        """Returns the requirements of one file, without those of files that it includes."""
        text = (pathlib.Path(self.root) / name).read_text()
        lines = (line.partition(" #")[0].strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith(("#", "-"))]

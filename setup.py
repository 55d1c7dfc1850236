"""What pyproject.toml cannot say: a wheel holds the experiments, which lie beside the package in a checkout."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithExperiments(build_py):
    """Copies ``experiments/`` into the package; an editable install finds them where they are."""

    def experiments(self):
        return {path: Path(self.build_lib, "avloc", path) for path in sorted(Path("experiments").rglob("*.yaml"))}

    def run(self):
        super().run()
        for source, target in {} if self.editable_mode else self.experiments().items():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target), preserve_mode=False)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(path) for path in self.experiments().values()]


if __name__ == "__main__":
    setup(cmdclass={"build_py": WithExperiments})

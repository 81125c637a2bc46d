"""Slurm's commands as scripts with prepared answers, for clusters that differ from the tests' own."""

from pathlib import Path

_COMMANDS = {
    "sbatch": """for file in "$@"; do :; done
number=$(($(cat last) + 1))
if [ "$number" -ge "$(cat refused)" ]; then
  echo "sbatch: error: Batch job submission failed: $(cat reason)" >&2
  exit 1
fi
echo "$number" > last
cp "$file" "$number.sh"
env > "$number.env"
echo "Submitted batch job $number" """,
    "scontrol": 'if [ "$1" = ping ]; then echo "Slurmctld is UP"; else cat config; fi',
    "scancel": 'echo "$@" >> canceled',
    "squeue": "cat queue",
    "sacct": "cat accounting",
    "srun": "exit 0",
    "sinfo": "exit 0",
}


class FakeSlurm:
    """The commands of a cluster, in `folder`/bin: put it first in PATH.

    `folder` holds their answers: `config` (scontrol show config), `queue` (squeue), `accounting` (sacct),
    `refused` (the first job number that sbatch refuses) and `reason`; and what they are given: `canceled`,
    N.sh and N.env, the batch script and the environment of job N.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for name in ("config", "queue", "accounting", "canceled", "reason"):
            self.write(name, "")
        self.write("last", "0")
        self.write("refused", "1000000")
        for name, body in _COMMANDS.items():
            self.bin.joinpath(name).write_text(f"#!/bin/sh\ncd '{folder}' || exit 1\n{body}\n")
            self.bin.joinpath(name).chmod(0o755)

    def write(self, name: str, text: str) -> None:
        self.folder.joinpath(name).write_text(text)

    def read(self, name: str) -> str:
        return self.folder.joinpath(name).read_text()

    def options(self, number: int) -> dict[str, str]:
        """Return the #SBATCH options of a job; the value of a flag is ""."""
        lines = self.read(f"{number}.sh").splitlines()
        pairs = [line.removeprefix("#SBATCH --").partition("=") for line in lines if "#SBATCH" in line]
        return {name: value.strip("'") for name, _, value in pairs}

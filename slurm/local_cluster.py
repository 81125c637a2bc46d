"""Run a real Slurm cluster on one host, for tests: `python slurm/local_cluster.py up|status|down ROOT`.

munge, slurmctld, one slurmd per node and, for `sacct`, slurmdbd on MariaDB run as root from one folder. The
host's own Slurm, munge and MariaDB are neither read nor changed. Each node is a slurmd in its own namespaces:
it has its own hostname and its own ROOT/scratch, hidden from the other nodes, and its processes end with it.
Jobs in the partition `high` preempt jobs in `main`, which are requeued.
"""

import argparse
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster_config import PATH, ClusterConfig, ClusterError, slurm_conf, slurm_version, slurmdbd_conf, which
from cluster_daemons import Daemons
from cluster_database import database_command
from cluster_processes import free_ports, is_listening

# Program -> the Debian package that contains it.
_PROGRAMS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm"}
_ACCOUNTING_PROGRAMS = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
_NAMESPACES = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
_SOCKET_PATH_LIMIT = 107  # bytes in the path of a Unix socket
_START_S, _GRACE_S = 60.0, 12.0  # for a daemon to start, and for jobs and daemons to end


def missing_requirement(*, accounting: bool = True) -> str | None:
    """Return in one line why no cluster can start here, and the remedy; None if one can start."""
    needed = _PROGRAMS | (_ACCOUNTING_PROGRAMS if accounting else {})
    missing = sorted({package for program, package in needed.items() if not which(program)})
    if missing:
        return f"a local Slurm cluster needs more packages: apt-get install {' '.join(missing)}"
    if os.geteuid() != 0:
        return "a local Slurm cluster needs root to create its nodes' namespaces; use sudo or a container"
    if not which("unshare") or subprocess.run([*_NAMESPACES, "true"], capture_output=True).returncode:
        return "a local Slurm cluster needs mount, UTS and PID namespaces; `unshare` is not permitted here"
    return None


class LocalCluster:
    """A cluster whose files are all under `root`.

    Args:
        root: the cluster's folder; `up` creates it.
        config: its size and options; only `up` reads them.
        bound: end the daemons when the thread that started them ends, even by SIGKILL.
    """

    def __init__(self, root: Path, config: ClusterConfig | None = None, *, bound: bool = False) -> None:
        self.root = Path(root).absolute()
        self.config = config or ClusterConfig()
        self.conf = self.root / "slurm.conf"
        self.daemons = Daemons(self.root, bound=bound)

    @property
    def env(self) -> dict[str, str]:
        """This process's environment with SLURM_CONF, the only variable that Slurm's commands need."""
        return dict(os.environ, SLURM_CONF=str(self.conf), PATH=PATH)

    def call(self, *words: str, timeout_s: float = 60.0) -> str:
        """Run one of Slurm's commands and return its output.

        Raises:
            ClusterError: the command failed.
        """
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=timeout_s)
        if done.returncode:
            raise ClusterError(f"{' '.join(words)}: {' '.join(done.stderr.split())}")
        return done.stdout

    # ------------------------------------------------------------------ up

    def up(self) -> "LocalCluster":
        """Start the cluster and wait until every node is idle.

        Does nothing if all daemons run; if only some run, stops them first.

        Raises:
            ClusterError: the cluster cannot start here, or a daemon exited; all daemons are then stopped.
        """
        running = self.running()
        if running and all(running.values()):
            return self
        problem = missing_requirement(accounting=self.config.accounting) or self._path_problem()
        if problem:
            raise ClusterError(problem)
        self.down()
        try:
            self._start()
        except BaseException:
            self.down()
            raise
        return self

    def _path_problem(self) -> str | None:
        if re.search(r"[\s\"'#=,%\\]", str(self.root)):
            return f"{self.root}: slurm.conf allows no path with spaces or any of \"'#=,%\\; give another"
        socket_path = self.root / "munge" / "munge.sock.2"
        if len(os.fsencode(socket_path)) > _SOCKET_PATH_LIMIT:
            return f"{self.root}: is too long for Unix sockets; give a path of at most 80 characters"
        return None

    def _start(self) -> None:
        ports = free_ports(3 + self.config.nodes)
        self._make_folders()
        self._write_files(ports)
        munge = self.root / "munge"
        self._start_daemon(
            "munged",
            *("munged", "--foreground", "--force", "--num-threads=4"),
            *(f"--key-file={munge}/munge.key", f"--socket={munge}/munge.sock", f"--seed-file={munge}/seed"),
            *(f"--pid-file={munge}/munged.pid", f"--log-file={self.root}/log/munged.log"),
        )
        if self.config.accounting:
            self._start_daemon("mariadbd", *database_command(self.root, ports[2]))
        self._wait_until((munge / "munge.sock").exists, "munged's socket")
        if self.config.accounting:
            self._wait_until(lambda: is_listening(ports[2]), "MariaDB")
            self._start_daemon("slurmdbd", "slurmdbd", "-D")
            self._wait_until(lambda: is_listening(ports[1]), "slurmdbd")
        self._start_daemon("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        for name in self.config.names:
            # The shell stays as the namespace's PID 1, which reaps orphans of slurmd's steps.
            script = (
                'hostname "$1"; mount --make-rprivate /; mount --bind "$2/hosts" /etc/hosts; '
                'mount --bind "$2/local/$1" "$2/scratch"; slurmd -D -f "$2/slurm.conf" -N "$1" & wait $!'
            )
            self._start_daemon(
                f"slurmd {name}", *_NAMESPACES, "sh", "-ec", script, "node", name, str(self.root)
            )
        self._wait_until(self._is_idle, "idle nodes")

    def _make_folders(self) -> None:
        names = self.config.names
        folders = ["munge", "state", "run", "log", "dev", "scratch"]
        folders += [f"spool/{name}" for name in names] + [f"local/{name}" for name in names]
        for folder in folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for folder in (self.root, self.root / "munge"):
            folder.chmod(0o755)  # munged rejects a socket that other users cannot reach
        key = self.root / "munge" / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
        for number in range(self.config.gpus):
            device = self.root / "dev" / f"gpu{number}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))

    def _write_files(self, ports: list[int]) -> None:
        names = self.config.names
        modern = slurm_version() >= (23, 2)
        files = {
            "slurm.conf": slurm_conf(self.root, self.config, ports),
            "slurmdbd.conf": slurmdbd_conf(self.root, ports),
            "hosts": Path("/etc/hosts").read_text().rstrip("\n") + f"\n127.0.0.1 {' '.join(names)}\n",
            "plugstack.conf": "",
            "cgroup.conf": "CgroupPlugin=disabled\n" if modern else "",
            "gres.conf": "AutoDetect=off\n",
        }
        if self.config.gpus:
            last = self.config.gpus - 1
            files["gres.conf"] += f"Name=gpu File={self.root}/dev/gpu{f'[0-{last}]' if last else '0'}\n"
        for name, text in files.items():
            path = self.root / name
            path.write_text(text)
            path.chmod(0o600 if name == "slurmdbd.conf" else 0o644)

    def _start_daemon(self, name: str, *words: str) -> None:
        self.daemons.start(name, *words, env=self.env)

    def _is_idle(self) -> bool:
        words = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"]
        done = subprocess.run(words, env=self.env, capture_output=True, text=True)
        return done.stdout.split() == ["idle"] * self.config.nodes

    def _wait_until(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not reached():
            ended = [name for name, alive in self.running().items() if not alive]
            if ended:
                raise ClusterError(f"{ended[0]} exited during startup; see {self.root}/log")
            if time.monotonic() > deadline:
                raise ClusterError(f"no {what} after {_START_S:.0f} s; see {self.root}/log")
            time.sleep(0.05)

    # ------------------------------------------------------------------ status and down

    def running(self) -> dict[str, bool]:
        """Return whether each daemon runs, in the order of their start; empty if none was started."""
        return self.daemons.running()

    def down(self) -> None:
        """Cancel the jobs and stop the daemons; a node ends with all processes on it."""
        if self.running().get("slurmctld"):
            self._cancel_jobs()
        self.daemons.stop(grace_s=_GRACE_S)

    def _cancel_jobs(self) -> None:
        deadline = time.monotonic() + _GRACE_S
        try:
            jobs = self.call("squeue", "--noheader", "--format=%A").split()
            if jobs:
                self.call("scancel", *sorted(set(jobs)))
            while time.monotonic() < deadline and self.call("squeue", "--noheader", "--format=%A").split():
                time.sleep(0.1)
        except (ClusterError, subprocess.TimeoutExpired):
            return  # the controller does not respond; the jobs end with their nodes

    def __enter__(self) -> "LocalCluster":
        return self.up()

    def __exit__(self, *exc_info: object) -> None:
        self.down()


# ---------------------------------------------------------------------- command


def main() -> int:
    """Run the command; return 0 on success, 1 if `status` finds a stopped daemon, 2 on an error."""
    parser = argparse.ArgumentParser(prog="local_cluster.py", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    up = commands.add_parser("up", help="start a cluster, if it is not running, and print its SLURM_CONF")
    up.add_argument("--nodes", type=int, default=2, help="number of nodes (default 2)")
    up.add_argument("--cpus", type=int, default=4, help="CPUs that each node reports (default 4)")
    up.add_argument("--gpus", type=int, default=0, help="fake GPUs per node (default 0)")
    up.add_argument("--no-accounting", action="store_true", help="run no slurmdbd and no MariaDB")
    status = commands.add_parser("status", help="print daemons, nodes and jobs")
    down = commands.add_parser("down", help="cancel all jobs and stop the daemons")
    for each in (up, status, down):
        each.add_argument("root", metavar="ROOT", type=Path, help="the cluster's folder")
    args = parser.parse_args()
    try:
        return {"up": _up, "status": _status, "down": _down}[args.command](args)
    except ClusterError as error:
        print(f"local_cluster.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"local_cluster.py: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def _up(args: argparse.Namespace) -> int:
    began = time.monotonic()
    config = ClusterConfig(
        nodes=args.nodes, cpus=args.cpus, gpus=args.gpus, accounting=not args.no_accounting
    )
    cluster = LocalCluster(args.root, config).up()
    print(f"# ready after {time.monotonic() - began:.1f} s: {', '.join(cluster.running())}")
    print(f"export SLURM_CONF={cluster.conf}")
    return 0


def _status(args: argparse.Namespace) -> int:
    cluster = LocalCluster(args.root)
    running = cluster.running()
    if not running:
        print(f"no cluster was started in {cluster.root}")
        return 1
    for name, alive in running.items():
        print(f"{name:<16} {'running' if alive else 'stopped'}")
    if running.get("slurmctld"):
        print(f"export SLURM_CONF={cluster.conf}\n")
        print(cluster.call("sinfo"))
        print(cluster.call("squeue"), end="")
    return 0 if all(running.values()) else 1


def _down(args: argparse.Namespace) -> int:
    cluster = LocalCluster(args.root)
    was = [name for name, alive in cluster.running().items() if alive]
    cluster.down()
    print(f"stopped: {', '.join(was)}" if was else f"no daemon of {cluster.root} was running")
    return 0


if __name__ == "__main__":
    sys.exit(main())

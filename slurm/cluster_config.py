"""The configuration of a local Slurm cluster, and the files that its daemons read."""

import os
import random
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class ClusterError(RuntimeError):
    """The cluster cannot start or has failed. The message is one line with the cause and the remedy."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The size and the options of a cluster.

    Attributes:
        nodes: number of nodes, named node1, node2, ...; each is a slurmd.
        cpus: CPUs that each node reports to Slurm.
        gpus: fake GPUs per node; their device files behave like /dev/null.
        accounting: run slurmdbd on MariaDB, so that `sacct` works; submitit needs it.
        kill_wait_s: seconds from a job's SIGTERM to its SIGKILL.

    Raises:
        ClusterError: a number is too small.
    """

    nodes: int = 2
    cpus: int = 4
    gpus: int = 0
    accounting: bool = True
    kill_wait_s: int = 10

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.cpus < 1 or self.gpus < 0 or self.kill_wait_s < 1:
            raise ClusterError(
                f"nodes={self.nodes}, cpus={self.cpus}, gpus={self.gpus}, kill_wait_s={self.kill_wait_s}: "
                "each must be at least 1, gpus at least 0"
            )

    @property
    def names(self) -> list[str]:
        """The nodes' names."""
        return [f"node{number + 1}" for number in range(self.nodes)]


def slurm_conf(root: Path, config: ClusterConfig, ports: list[int]) -> str:
    """Return the content of slurm.conf.

    Args:
        root: the cluster's folder.
        ports: of slurmctld, slurmdbd, MariaDB and each node's slurmd.
    """
    controller, accounting, _, *nodes = ports
    host = socket.gethostname()
    account = "AccountingStorageType=accounting_storage/none"
    if config.accounting:
        account = "\n".join(
            [
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=127.0.0.1",
                f"AccountingStoragePort={accounting}",
                f"AccountingStoragePass={root}/munge/munge.sock",
                "JobAcctGatherType=jobacct_gather/none",
            ]
        )
    gres = f"Gres=gpu:{config.gpus} " if config.gpus else ""
    lines = [
        f"NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={config.cpus} {gres}RealMemory=8000"
        for name, port in zip(config.names, nodes, strict=True)
    ]
    members = ",".join(config.names)
    # The ranks derive their port from the job id, so clusters on one host must not use the same ids.
    return f"""ClusterName=longplay
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
PlugStackConfig={root}/plugstack.conf
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobFileAppend=1
ReturnToService=1
KillWait={config.kill_wait_s}
MinJobAge=3600
FirstJobId={random.randrange(1000, 60000)}
MaxJobId=60000000
SlurmctldTimeout=30
SlurmdTimeout=60
{account}
{chr(10).join(lines)}
PartitionName=main Nodes={members} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={members} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def slurmdbd_conf(root: Path, ports: list[int]) -> str:
    """Return the content of slurmdbd.conf; arguments as in `slurm_conf`."""
    _, accounting, database, *_ = ports
    return f"""AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.sock
DbdHost={socket.gethostname()}
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=slurm_acct_db
PidFile={root}/run/slurmdbd.pid
LogFile={root}/log/slurmdbd.log
DebugLevel=info
"""


def which(program: str) -> str | None:
    """Return the path of a program, also looking in the sbin folders; None if it is not installed."""
    return shutil.which(program, path=PATH)


def slurm_version() -> tuple[int, int]:
    """Return Slurm's major and minor version; (0, 0) if slurmctld does not print one."""
    done = subprocess.run([which("slurmctld") or "slurmctld", "-V"], capture_output=True, text=True)
    match = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)

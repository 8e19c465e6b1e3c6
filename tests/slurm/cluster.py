"""A private SLURM on one machine: two nodes with two stand-in GPUs each, in a scratch folder, gone when it ends.

    python tests/slurm/cluster.py COMMAND...        runs a command with such a cluster; its status is the command's

It needs the programs of Debian's slurm-wlm and munge, none of their services, and no root. CPUs, memory and GPUs are
only counted, never measured: what is tested is how jobs are asked for, stopped, lost and started again.
"""

import contextlib
import ctypes
import getpass
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from edm.errors import UserError

NODES = ("n1", "n2")
CPUS, MEMORY, GPUS = 16, 256_000, 2  # of each node, whatever the machine has; memory in MB
CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "sacct")
DAEMONS = ("munged", "slurmctld", "slurmd")
PRCTL, PR_SET_PDEATHSIG = ctypes.CDLL(None).prctl, 1
PORTS = range(10_000, 20_000)  # of the daemons; Linux gives connections ports from 32,768 on
#: States of a job on its node; scontrol says SIGNALING while a signal is on its way, and COMPLETING at the end.
RUNNING, ENDING = ("RUNNING", "SIGNALING"), ("COMPLETING",)
LIVING = ("PENDING", *RUNNING, *ENDING)
LONGEST = 70  # characters of the folder's path: UNIX sockets live below it, and theirs may have 107

CONFIGURATION = """\
ClusterName=scratch
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again when the credentials of its last attempt have run out: 120 s unless said otherwise.
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_delay}
CommunicationParameters={communication}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=5
SlurmdTimeout=10
TCPTimeout=2
MessageTimeout=10
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """``with Cluster(folder) as cluster:`` — the folder is made, and removed at the end with all that ran in it.

    A SIGTERM that nothing else handles ends it as Ctrl-C does; its daemons end with a process that is killed.

    ``environment`` is what clients need; ``requeue_delay`` the seconds a requeued job waits before it starts again.
    Raises UserError if SLURM is not installed, or does not come up within ``patience`` seconds.
    """

    def __init__(self, folder: Path | str, *, requeue_delay: int = 5, patience: float = 30):
        self.folder = Path(folder).resolve()
        self.requeue_delay, self.patience = requeue_delay, patience
        self.configuration = self.folder / "slurm.conf"
        # The clients in bin/ know the cluster by themselves: Snakemake takes SLURM_CONF from the jobs' own srun.
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))},
            "SLURM_CONF": str(self.configuration),
            "PATH": os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]]),
        }
        self.daemons: dict[str, subprocess.Popen] = {}
        self._handler: object = None  # of SIGTERM, where it is not ours

    def __enter__(self):
        missing = [name for name in (*DAEMONS, "sbatch") if not _program(name)]
        if missing:
            raise UserError(
                f"{', '.join(missing)} not found: install Debian's slurm-wlm and munge: apt-get install slurm-wlm munge"
            )
        if len(str(self.folder)) > LONGEST:
            raise UserError(f"{self.folder}: too long a path for SLURM's sockets; at most {LONGEST} characters")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty; a cluster wants a new folder, which it removes when it ends")
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self._write()
            self._start("munged", "--foreground", "--force", "--num-threads=2", *(
                f"--{option}={self.folder}/munge.{option.removesuffix('-file')}"
                for option in ("socket", "key-file", "pid-file", "seed-file")
            ))  # fmt: skip
            self._wait(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-i")
            for node in NODES:
                self.revive(node)
            self._wait(lambda: self._idle(*NODES))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self._handler is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` and others send it twice: the end ends
        # The controller first, lest it start again what is lost; munged last: the others cannot end without it.
        for name in sorted(self.daemons, key=["slurmctld", *NODES, "munged"].index):
            if name == "munged":
                self._kill(self.processes)
            self._end(name)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def run(self, *words, check=True, **options) -> str:
        """The output of one command, such as ``run("squeue", "--all")``; raises CalledProcessError if it fails."""
        options = {"env": self.environment, "stdout": subprocess.PIPE, "text": True, "timeout": 120, **options}
        return subprocess.run([*map(str, words)], check=check, **options).stdout

    def jobs(self) -> list[dict[str, str]]:
        """All jobs of this cluster, ended ones too: id, name, state, node, partition, tres, restarts, exit and more."""
        keys = {
            "name": "JobName", "state": "JobState", "reason": "Reason", "node": "NodeList", "partition": "Partition",
            "restarts": "Restarts", "exit": "ExitCode", "limit": "TimeLimit", "log": "StdOut",
        }  # fmt: skip
        jobs = []
        for line in self.run("scontrol", "--oneliner", "show", "job").splitlines():
            found = dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", line))
            if "JobId" in found:
                array = found.get("ArrayJobId")
                job = {"id": f"{array}_{found['ArrayTaskId']}" if array else found["JobId"]}
                job["tres"] = ",".join(found[key] for key in ("TRES", "TresPerJob", "TresPerNode") if key in found)
                jobs.append(job | {name: found.get(key, "") for name, key in keys.items()})
        return jobs

    def job(self, number) -> dict[str, str]:
        """One job by its id."""
        return next(job for job in self.jobs() if job["id"] == str(number))

    def lose(self, node: str):
        """A node breaks: its daemon and every process of a job on it are killed at once."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        self._kill(lambda: self.processes(SLURMD_NODENAME=node))

    def revive(self, node: str):
        """Starts the daemon of a node, again if it was lost."""
        self._start("slurmd", "-D", "-N", node, name=node, environment={"SLURMD_NODENAME": node})

    def settle(self):
        """Returns when every node and its GPUs are idle. Raises UserError with the logs if one does not become so."""
        self._wait(lambda: self._idle(*NODES), 120)

    def _write(self):
        host, (port, *ports) = socket.gethostname().split(".")[0], _free_ports(1 + len(NODES))
        # Daemons listen where the machine's name leads to, if that is the machine itself, and otherwise everywhere.
        try:
            loopback = socket.gethostbyname(host).startswith("127.")
        except OSError:
            loopback = False
        address = socket.gethostbyname(host) if loopback else "127.0.0.1"
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={port} CPUs={CPUS} RealMemory={MEMORY} "
            f"Gres=gpu:{GPUS} State=UNKNOWN"
            for node, port in zip(NODES, ports, strict=True)
        )
        for name in ("state", "bin"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "munge.key").touch(0o600)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        self.configuration.write_text(
            CONFIGURATION.format(
                host=host, address=address, port=port, user=getpass.getuser(), folder=self.folder, nodes=nodes,
                requeue_delay=self.requeue_delay,
                communication="NoCtldInAddrAny,NoInAddrAny" if loopback else "",
            )
        )  # fmt: skip
        # SLURM wants GPUs to be devices, opens none, and does not mind that all are one which every machine has.
        for number in range(GPUS):
            (self.folder / f"gpu{number}").symlink_to(os.devnull)
        (self.folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        for name in CLIENTS:
            if real := shutil.which(name):
                client = self.folder / "bin" / name
                client.write_text(f"#!/bin/sh\nSLURM_CONF='{self.configuration}' exec '{real}' \"$@\"\n")
                client.chmod(0o755)

    def _start(self, program, *words, name=None, environment=()):
        name = name or program
        # Linux tells of the end of the thread that started a process, not of the process around it.
        with_parent = threading.current_thread() is threading.main_thread()
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [_program(program), *words], env={**self.environment, **dict(environment)}, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=_end_with_parent if with_parent else None,
            )  # fmt: skip

    def _idle(self, *nodes):
        columns = "NodeList:20,StateCompact:20,GresUsed:40"
        try:
            rows = [line.split() for line in self.run("sinfo", "-hN", "-O", columns, stderr=-1).splitlines()]
        except subprocess.SubprocessError:
            return False
        return all([node, "idle", "gpu:0"] in rows for node in nodes)

    def _wait(self, ready, patience=None):
        end = time.monotonic() + (patience or self.patience)
        while not ready():
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                why = f"{', '.join(dead)} ended" if dead else f"not ready after {patience or self.patience:g} s"
                raise UserError(f"the private SLURM is not up ({why}). Its logs:\n{self._logs()}")
            time.sleep(0.1)

    def _logs(self, lines=8):
        return "\n".join(
            f"{log.name}: {line}"
            for log in sorted(self.folder.glob("*.log"))
            for line in log.read_text(errors="replace").splitlines()[-lines:]
        )

    def _end(self, name):
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def processes(self, **variables) -> list[int]:
        """Numbers of the processes that live in this cluster, known by their environment: ``SLURM_JOB_ID="3"``."""
        marks = [f"{name}={value}".encode() for name, value in {"SLURM_CONF": self.configuration, **variables}.items()]
        spared = {os.getpid(), *(daemon.pid for daemon in self.daemons.values())}
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            # Neither others' processes nor those that are ending can be read.
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if int(entry.name) not in spared and all(mark in variables for mark in marks):
                    found.append(int(entry.name))
        return found

    def _kill(self, processes):
        """Kills until none is left: a process may have started another meanwhile."""
        end = time.monotonic() + 10
        while (numbers := processes()) and time.monotonic() < end:
            for number in numbers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.05)


def _end_with_parent():
    """Linux ends this process when the one that started it is gone."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def _program(name):
    """Where a program is; daemons lie in folders that are not on everyone's path."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"]))


def _free_ports(count):
    """Ports that the system gives to no connection: one that gets a lost node's would keep it from coming back."""
    found = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise UserError(f"fewer than {count} of the ports {PORTS[0]} to {PORTS[-1]} are free")


def _end(number, frame):
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main(words):
    if not words:
        raise UserError("no command given: python tests/slurm/cluster.py COMMAND...")
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory() as scratch, Cluster(Path(scratch) / "slurm") as cluster:
        try:
            command = subprocess.Popen(words, env=cluster.environment)
        except OSError as error:
            raise UserError(f"{words[0]}: {error.strerror}") from None
        # Ctrl-C reaches the command as well: the cluster stays until that has ended, and is then taken down in peace.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            command.wait()
        finally:
            command.terminate()
        return command.returncode if command.returncode >= 0 else 128 - command.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")

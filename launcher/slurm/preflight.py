"""All nodes of a SLURM job, before its ranks: ``python -m launcher.slurm.preflight lead|node …``.

The script of `slurm.script` calls ``lead`` on the first node, which starts ``node`` on each with srun and waits two
minutes at most. Owns how the facts of `preflight` travel: over SLURM's own connections, so that a node without the
shared disk or without a way to the head can say so. Ends with 3, and every bad host named, rather than let ranks wait.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from launcher import __version__, preflight
from launcher.errors import EnvironmentProblem, ThawlineError
from launcher.preflight import Facts
from launcher.run_dir import RunDir
from launcher.status import close_status

PATIENCE_S = float(os.environ.get("THAWLINE_PREFLIGHT_S", "120"))
"""For all nodes to answer: their prolog, python from a cold disk and nvidia-smi are in it."""
LINK_TIMEOUT_S = 10.0
_MARK = "thawline-facts "
"""What a line of facts begins with, among whatever else a node prints."""


def lead(run: RunDir, attempt: Path, hosts: Sequence[str], head: str, port: int, needs: argparse.Namespace) -> str:
    """Look at all nodes; return a line on them.

    Raises: EnvironmentProblem with all that is wrong, by host.
    """
    folder, token = attempt / "preflight", secrets.token_hex(8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(token)
    command = [
        "srun", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1",
        f"--nodelist={','.join(hosts)}", "--export=ALL", "--kill-on-bad-exit=0", "--label", *needs.srun_arguments,
        *needs.prefix, needs.python, "-m", "launcher.slurm.preflight", "node", str(folder), token, head, str(port),
    ]  # fmt: skip
    began = time.monotonic()
    with _answering(port):
        said = _said(command)
    waited = f"no answer in {time.monotonic() - began:.0f} s"
    found, strangers = _facts(said)
    lines = [f"{host}: {strangers[host]}" for host in hosts if host in strangers]
    lines += [
        f"{host}: it cannot run {needs.python}: {_silence(host, hosts, said) or waited}"
        for host in hosts
        if host not in found and host not in strangers
    ]
    present = [found[host] for host in hosts if host in found]
    if present:
        lines += preflight.problems(present, needs.ranks_per_node, needs.gpus_per_node, needs.memory)
        lines += [
            f"{facts.host}: the run's folder is not shared: what it wrote to {folder / facts.host} is not seen here"
            for facts in present
            if facts.folder_error is None and not (folder / facts.host).is_file()
        ]
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise EnvironmentProblem(
            f"preflight: not every node can take part:\n{listed}\nMend it, or leave the node out with --exclude"
        )
    return f"preflight: {preflight.summary(present)}"


def node(folder: Path, token: str, head: str, port: int) -> None:
    """Look at this node, measure its way to the head, print what was found."""
    facts = preflight.look(os.environ.get("SLURMD_NODENAME"), folder, token)
    changes: dict[str, object] = {}
    try:
        began = time.monotonic()
        with socket.create_connection((head, port), LINK_TIMEOUT_S) as link:
            link.settimeout(LINK_TIMEOUT_S)
            heads_time = json.loads(link.makefile().readline())
        link_s = time.monotonic() - began
        changes = {"link_s": link_s, "clock_ahead_s": time.time() - heads_time - link_s / 2}
    except (OSError, ValueError) as error:
        why = f"it does not reach the head at {head}:{port} ({error}); nodes must reach one another on every port"
        changes = {"link_error": why}
    print(_MARK + facts.model_copy(update=changes).model_dump_json(), flush=True)


@contextmanager
def _answering(port: int) -> Iterator[None]:
    """Tell everybody who connects to the port what time it is here."""
    with socket.create_server(("", port), backlog=1024) as server:
        server.settimeout(0.2)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    link, _ = server.accept()
                    with link:
                        link.sendall(f"{time.time()}\n".encode())
                except OSError:  # nobody came, or one that is gone already
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _said(command: Sequence[str]) -> str:
    """All that srun and its tasks print within the time that they have."""
    with tempfile.TemporaryFile("w+") as output:
        step = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            step.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            step.kill()
            step.wait()
        output.seek(0)
        return output.read()


def _facts(said: str) -> tuple[dict[str, Facts], dict[str, str]]:
    """By host: its facts, or what is wrong with those that another release of thawline sent."""
    found, strangers = {}, {}
    for line in said.splitlines():
        _, mark, content = line.partition(_MARK)
        if not mark:
            continue
        try:
            facts = Facts.model_validate_json(content)
            found[facts.host] = facts
        except ValidationError:
            try:
                sent = json.loads(content)
            except ValueError:  # a line that was cut
                continue
            release = sent.get("versions", {}).get("thawline", "of another release")
            strangers[str(sent.get("host"))] = (
                f"thawline {release}, and {__version__} on the first node; install the same on all nodes"
            )
    return found, strangers


def _silence(host: str, hosts: Sequence[str], said: str) -> str:
    """What is known of a node that sent no facts: its own words, else srun's."""
    task = f"{hosts.index(host)}: "
    lines = [line for line in said.splitlines() if _MARK not in line]
    own = [line for line in lines if host in line or line.startswith(task)]
    return "; ".join((own or [line for line in lines if line.startswith("srun: ")])[-3:])


def main(argv: list[str] | None = None) -> int:
    """Lead the look, or look at one node."""
    parser = argparse.ArgumentParser(prog="launcher.slurm.preflight", description="Look at all nodes of a job.")
    roles = parser.add_subparsers(dest="role", required=True)
    leads = roles.add_parser("lead")
    leads.add_argument("run", type=Path)
    leads.add_argument("attempt", type=Path)
    leads.add_argument("hosts", nargs="+")
    leads.add_argument("--port", type=int, required=True)
    leads.add_argument("--ranks-per-node", type=int, required=True)
    leads.add_argument("--gpus-per-node", type=int, required=True)
    leads.add_argument("--memory")
    leads.add_argument("--python", default=sys.executable)
    leads.add_argument("--prefix", action="append", default=[])
    leads.add_argument("--srun-argument", dest="srun_arguments", action="append", default=[])
    looks = roles.add_parser("node")
    looks.add_argument("folder", type=Path)
    looks.add_argument("token")
    looks.add_argument("head")
    looks.add_argument("port", type=int)
    given = parser.parse_args(argv)
    if given.role == "node":
        node(given.folder, given.token, given.head, given.port)
        return 0
    try:
        print(lead(RunDir(given.run), given.attempt, given.hosts, given.hosts[0], given.port, given), flush=True)
    except (ThawlineError, OSError) as error:
        if isinstance(error, OSError):  # no srun, a folder that cannot be written, a port that is taken
            error = EnvironmentProblem(f"preflight: {error}, on the first node, {socket.gethostname()}; mend it there")
        close_status(RunDir(given.run), "failed", str(error))
        print(f"thawline: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

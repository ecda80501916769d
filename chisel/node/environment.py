"""Make out of a request what is to be started: where, as whom, with which variables, in which container."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from . import cgroup, env
from .processes import Account, Launch
from .stdio import Refused

# ROCm's documentation, "GPU isolation techniques": it holds for HIP and OpenCL alike.
_GPU_VARIABLES = ("ROCR_VISIBLE_DEVICES",)
_ENGINES = ("docker", "podman")
_CLEAN_UP_S = 20.0
_DEVICES = ("/dev/kfd", "/dev/dri")
_GROUPS = ("video", "render")


def read_launch(request: Mapping[str, Any]) -> Launch:
    """Return what to start; raises Refused for a directory, user, environment or engine that is not there."""
    cwd = env.expand(str(request.get("cwd") or "~"))
    if not os.path.isdir(cwd):
        raise Refused(
            "no-cwd", f"there is no directory `{request.get('cwd')}` on the droplet: nothing was synced there"
        )
    given = {str(name): str(value) for name, value in dict(request.get("env") or {}).items()}
    account = _account(str(request["user"])) if request.get("user") else None
    if account is not None and not _may_enter(account, cwd):
        raise Refused("no-cwd", f"user `{request['user']}` may not enter `{cwd}`: choose another directory with --cwd")
    environ = env.command_environment({})
    if account is not None:
        environ.update(account.environ)
    if request.get("venv"):
        environ.update(_in_venv(str(request["venv"]), cwd, environ))
    if request.get("gpus"):
        environ.update(dict.fromkeys(_GPU_VARIABLES, str(request["gpus"])))
    terminal = request.get("terminal")
    if terminal:
        environ["TERM"] = str(terminal.get("term") or "xterm")
    environ.update(given)
    line = str(request["line"])
    if request.get("container"):
        line = _in_container(request, cwd, {**given, **_chosen(environ, ("TERM", *_GPU_VARIABLES))})
    return Launch(
        line=line,
        cwd=cwd,
        environ=environ,
        wants_stdin=bool(request.get("stdin")),
        terminal=(int(terminal["rows"]), int(terminal["columns"])) if terminal else None,
        account=account,
    )


def group_of(run_id: str) -> cgroup.Cgroup | None:
    """Return the control group for a run; on a sandbox's droplet there is none, the machine around it is not ours."""
    return None if env.is_played() else cgroup.make(run_id)


def clean_up(request: Mapping[str, Any]) -> None:
    """Remove what a command in a container leaves behind when its client was killed: the container itself."""
    engine = _engine() if request.get("container") else None
    if engine is not None:
        import subprocess

        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [engine, "rm", "--force", container_name(str(request["run_id"]))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_CLEAN_UP_S,
                check=False,
            )


def container_name(run_id: str) -> str:
    """Return the name of a run's container."""
    return f"chisel-{run_id}"


def _chosen(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: environ[name] for name in names if name in environ}


def _account(name: str) -> Account:
    """Look a user up, by name or number."""
    import pwd

    if os.getuid() != 0:
        raise Refused("no-user", f"only root can run commands as `{name}`")
    try:
        found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise Refused("no-user", f"there is no user `{name}` on the droplet") from None
    variables = {"HOME": found.pw_dir, "USER": found.pw_name, "LOGNAME": found.pw_name, "SHELL": found.pw_shell}
    groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
    return Account(found.pw_uid, found.pw_gid, groups, variables)


def _may_enter(account: Account, cwd: str) -> bool:
    """Try as that user, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups(account.groups)
            os.setgid(account.gid)
            os.setuid(account.uid)
            os.chdir(cwd)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _in_venv(path: str, cwd: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what activating a virtual environment sets: its path is taken from the working directory."""
    place = os.path.normpath(os.path.join(cwd, env.expand(path) if path.startswith("~") else path))
    if not os.path.exists(os.path.join(place, "bin", "python")):
        raise Refused("no-venv", f"there is no virtual environment at `{path}` (no bin/python)")
    return {"VIRTUAL_ENV": place, "PATH": f"{place}/bin:{environ.get('PATH', os.defpath)}", "PYTHONHOME": ""}


def _engine() -> str | None:
    import shutil

    return next((found for found in map(shutil.which, _ENGINES) if found), None)


def _in_container(request: Mapping[str, Any], cwd: str, variables: Mapping[str, str]) -> str:
    """Return the line that runs the command inside a container (ROCm's documentation, "Running ROCm in Docker").

    Values stay in the engine's own environment: its command line, which others can read, has only names.
    """
    engine = _engine()
    if engine is None:
        raise Refused("no-engine", "there is no docker or podman on the droplet")
    words = [engine, "run", "--rm", "--init", "--name", container_name(str(request["run_id"]))]
    words += ["--interactive"] if request.get("stdin") or request.get("terminal") else []
    words += ["--tty"] if request.get("terminal") else []
    words += [f"--device={path}" for path in _DEVICES if os.path.exists(path)]
    words += [f"--group-add={_group_id(name)}" for name in _GROUPS if _group_id(name)]
    words += ["--ipc=host", "--security-opt=seccomp=unconfined", "--cap-add=SYS_PTRACE"]
    home = env.expand("~/chisel")
    place = home if cwd == home or cwd.startswith(home + "/") else cwd
    words += [f"--volume={place}:{place}", f"--workdir={cwd}"]
    for name in sorted(variables):
        words += ["--env", name]
    words += ["--env", "TINI_KILL_PROCESS_GROUP=1"]  # a signal reaches the whole group in there, as without
    words += [str(request["container"]), "bash", "-c", str(request["line"])]
    return "exec " + shlex.join(words)


def _group_id(name: str) -> str:
    """Return the number of the droplet's own group: the image's may have another."""
    import grp

    try:
        return str(grp.getgrnam(name).gr_gid)
    except KeyError:
        return ""

"""Where and how runs are submitted to SLURM: `configs/profiles/*.yaml`, strictly read."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from elder.ablation.planning.study import Resources

__all__ = ["ProfileError", "SlurmProfile", "find_profile", "read_profile"]

FOLDER = Path("configs/profiles")


class ProfileError(ValueError):
    """A mistake in a profile; the message names file and key."""


@dataclass(frozen=True, slots=True)
class SlurmProfile:
    """Settings of a cluster; every one may be left out.

    Args:
        partition: Queue of jobs; the cluster's default if None.
        account: Whom to charge.
        qos: Quality of service.
        constraint: Features that nodes must have.
        reservation: Reservation to run in.
        exclude: Nodes not to be used.
        accelerator: What `accelerator: auto` of a run means here: `cpu` or `gpu`.
        gpu_type: Type of GPU to ask for, as in `--gpus-per-node=a100:4`.
        setup: Lines of shell before the run: modules, environments, variables.
        srun: Further options of srun.
        sbatch: Further options of sbatch by name, without dashes; true for one that takes no value.
        array_parallelism: How many runs of one array may run at once.
        max_jobs: How many jobs may be in the queue at once; the rest is submitted as these end.
        signal_seconds: How long before its time limit a run is told to save its state.
        requeues: How often a job that was interrupted is put back into the queue.
        resources: What `submit` asks for; studies state their own.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    accelerator: str = "cpu"
    gpu_type: str | None = None
    setup: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)
    array_parallelism: int = 32
    max_jobs: int = 1000
    signal_seconds: int = 90
    requeues: int = 20
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if self.accelerator not in ("cpu", "gpu"):
            raise ProfileError(f"accelerator: expected cpu or gpu, got {self.accelerator!r}")
        for name in ("array_parallelism", "max_jobs", "signal_seconds"):
            if (value := getattr(self, name)) < 1:
                raise ProfileError(f"{name}: expected 1 or more, got {value}")

    def gpus(self, accelerator: str) -> bool:
        """Whether a run that asks for this accelerator is given GPUs."""
        return (self.accelerator if accelerator == "auto" else accelerator) in ("gpu", "cuda")

    def options(self, resources: Resources) -> dict[str, str | int | bool]:
        """Options of sbatch for a job with these resources, by name; true for one that takes no value.

        Processes are counted per node: Lightning refuses `--ntasks`. The signal goes to the processes of a step, which
        save their state and end, so that the job can be put back into the queue.
        """
        options: dict[str, str | int | bool] = {
            "nodes": resources.nodes,
            "ntasks-per-node": resources.devices,
            "cpus-per-task": resources.cpus,
            "time": resources.minutes,
            "mem": f"{round(1024 * resources.memory_gb)}M",
        }
        if self.gpus(resources.accelerator):
            options["gpus-per-node"] = f"{self.gpu_type}:{resources.devices}" if self.gpu_type else resources.devices
        names = ("partition", "account", "qos", "constraint", "reservation", "exclude")
        options |= {name: value for name in names if (value := getattr(self, name)) is not None}
        options |= {"signal": f"USR1@{self.signal_seconds}", "requeue": True, "open-mode": "append"}
        return options | dict(self.sbatch)


def find_profile(
    name: str,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    where: str = "",
    beside: Sequence[str] = (),
) -> SlurmProfile:
    """The profile of a name: `configs/profiles/NAME.yaml` or the file itself, under what a study says of it.

    Args:
        name: A name, or the path of a YAML file.
        settings: `profiles` of the study: settings by name, which go before those of the file.
        where: File of the study, for messages.
        beside: Further names that the caller knows, for messages.

    Raises:
        ProfileError: If there is no such profile, or it has a mistake.
    """
    settings = settings or {}
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file() and name not in settings and name != "slurm":
        known = sorted({*beside, "slurm", *settings, *(p.stem for p in FOLDER.glob("*.yaml"))})
        raise ProfileError(f"profile: expected a YAML file or one of {', '.join(known)}, got {name}")
    written = _load(path) if path.is_file() else {}
    read_profile(written, str(path))  # a mistake is put down to the file it stands in
    own = settings.get(name, {})
    read_profile(own, f"{where}: profiles.{name}")
    resources = {**(written.get("resources") or {}), **(own.get("resources") or {})}
    return read_profile({**written, **own, "resources": resources}, str(path))


def read_profile(settings: Mapping[str, Any], where: str) -> SlurmProfile:
    """The profile that settings describe.

    Raises:
        ProfileError: If a key is unknown or a value has another type than it should; `where` begins the message.
    """
    try:
        return _read(SlurmProfile, settings, "")
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from None


def _load(path: Path) -> Mapping[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ProfileError(f"{path}: expected a YAML file, got {' '.join(str(error).split())}") from None
    return settings


def _read(kind: type, settings: Any, place: str) -> Any:
    if not isinstance(settings, Mapping):
        raise ProfileError(f"{place or 'the profile'}: expected keys and values, got {settings!r}")
    types = get_type_hints(kind)
    fields = {f.name: types[f.name] for f in dataclasses.fields(kind)}
    values = {}
    for key, value in settings.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
            raise ProfileError(f"{place}{key}: expected a setting of a profile, got an unknown key; {hint}")
        values[key] = _value(fields[key], value, f"{place}{key}")
    return kind(**values)


def _value(kind: Any, value: Any, place: str) -> Any:
    """A value of YAML as the type of its field; nothing is guessed."""
    if kind is Resources:
        return _read(kind, value, f"{place}.")
    if get_origin(kind) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ProfileError(f"{place}: expected a list of lines, got {value!r}")
    if get_origin(kind) is Mapping:
        if isinstance(value, Mapping) and all(isinstance(v, str | int | bool) for v in value.values()):
            return {str(k): v for k, v in value.items()}
        raise ProfileError(f"{place}: expected options and their values, got {value!r}")
    accepted: tuple[type, ...] = get_args(kind) or ((int, float) if kind is float else (kind,))
    if isinstance(value, accepted) and not (isinstance(value, bool) and bool not in accepted):
        return value
    names = " or ".join("null" if t is type(None) else t.__name__ for t in accepted)
    raise ProfileError(f"{place}: expected {names}, got {value!r}")

"""The commands of `qgf` and their options: each parses, calls, prints."""

import dataclasses
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from qgf.config import PRESETS, Config
from qgf.errors import UserError

if TYPE_CHECKING:
    from qgf.data.readers import Fields

Positional = tyro.conf.Positional
# Of a Config, `hyper` has options elsewhere.
_Settings = Annotated[Config, tyro.conf.arg(name=""), tyro.conf.SuppressFixed]


@dataclass(frozen=True)
class Collect:
    """Collect a dataset from OGBench's scripted oracles."""

    env: Positional[str]
    """what to collect, e.g. cube-single-play-v0"""
    out: Path
    """folder of the dataset; a collection that was cut off goes on where it was"""
    episodes: int = 1000
    """training episodes of 1001 steps"""
    val_episodes: int | None = None
    """validation episodes; a tenth of the training episodes by default"""
    shard_episodes: int = 1000
    """episodes in a file"""
    workers: int | None = None
    """processes, by default one per processor; with 1, all happens in this one"""
    executor: Literal["processes", "ray"] = "processes"
    """where episodes are played: in processes here, or on a Ray cluster that shares --out"""
    address: str | None = None
    """that of the Ray cluster, e.g. auto; without it one is started on this machine"""
    seed: int = 0
    """of the whole dataset; the same bytes for any number of workers"""

    def __call__(self) -> None:
        from qgf.tasks.ogbench.envs import check_simulator

        check_simulator()
        from qgf.executor import for_collecting
        from qgf.tasks.ogbench.collect import collect

        val_episodes = -(-self.episodes // 10) if self.val_episodes is None else self.val_episodes
        manifest = collect(
            self.env,
            self.out,
            self.episodes,
            val_episodes,
            self.shard_episodes,
            for_collecting(self.executor, self.workers, self.address),
            self.seed,
        )
        rows = sum(shard.rows for shard in manifest.shards)
        print(f"{manifest.name}: {rows:,} steps in {self.out}")


@dataclass(frozen=True)
class Train:
    """Train what a method acts with: by default a flow policy (BC) and a critic (IQL)."""

    out: Path
    """folder of the run"""
    env: str | None = None
    """OGBench's …-singletask-taskN-v0, or …-oraclerep-v0 for goals; gymnasium:ID; module:factory,
    of which factory() makes a Gymnasium environment; or none: recorded episodes alone, which is
    the default. --base's if given"""
    data: Path | None = None
    """recorded episodes: a dataset of OGBench's layout for OGBench's names, else a file or folder
    of any format that `qgf data inspect` reads; --base's by default"""
    obs: tuple[str, ...] | None = None
    """the recorded fields that are the observation, joined in this order"""
    action: str | None = None
    """the recorded field that is the action"""
    reward: str | None = None
    """what is paid: a recorded field, success, sparse, last-step, success-csv:FILE, or
    module:function"""
    method: str = "qgf"
    """one of `qgf methods`"""
    preset: Literal["laptop", "paper"] = "laptop"
    """the values below that are not given"""
    seed: int = 0
    """training seed"""
    seeds: str | None = None
    """several seeds at once instead: 0..9 or 0,3,5"""
    critic: str | None = None
    """kind of the critic: for a task iql (by default), n-step, monte-carlo or task-dqc; for goals
    dqc (the default there) or goal-iql"""
    policy: Path | None = None
    """a run whose policy is used as it is; only the critic is trained"""
    base: Path | None = None
    """a run of which all learners the method needs are used as they are"""
    resume: bool = False
    """continue the run in --out"""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """where metrics go beside metrics.jsonl"""
    config: _Settings = PRESETS["laptop"]

    def __call__(self) -> None:
        _check_devices()
        from qgf.run.trainer import train

        env, data, fields = self._from_base()
        seeds = [self.seed] if self.seeds is None else _parse_seeds(self.seeds)
        try:
            train(
                env,
                data,
                self.out,
                self.config,
                seeds=seeds,
                method=self.method,
                critic=self.critic,
                policy=self.policy,
                base=self.base,
                fields=fields,
                resume=self.resume,
                logger=self.logger,
            )
        except KeyboardInterrupt as stop:
            if str(stop) or not (self.out / "config.json").exists():
                raise
            raise type(stop)("add --resume to continue from the last checkpoint") from None
        print(f"trained: {self.out}")

    def _from_base(self) -> tuple[str, Path, "Fields"]:
        """Return env, data and fields, those not given being the base run's."""
        from qgf.data import Fields
        from qgf.tasks import NO_TASK

        fields = Fields(self.obs, self.action, self.reward)
        if self.base is None:
            if self.data is None:
                raise UserError("name --data, and --env, or a run to build on with --base")
            return self.env or NO_TASK, self.data, fields
        from qgf.run import fields_of, load_record

        record = load_record(self.base)
        given = {name: value for name, value in vars(fields).items() if value is not None}
        data = self.data or Path(record["data"]["folder"])
        return self.env or record["env"], data, dataclasses.replace(fields_of(record), **given)


@dataclass(frozen=True)
class Eval:
    """Evaluate a run: choose the guidance weight on some episodes, report it on others."""

    run: Positional[Path]
    """folder of the run"""
    method: tuple[str, ...] = ("qgf",)
    """one or more of `qgf methods`"""
    critic: Path | None = None
    """another run whose critic guides, in place of the run's own"""
    weights: tuple[float, ...] | None = None
    """guidance weights (or step sizes); by default, for guided flows, one that fits the run's own
    scale (see `qgf study calibration`), for others each method's own; 0 is always among them"""
    best_of: tuple[int, ...] = ()
    """numbers N of samples of best-of-N methods, bfn if none is named"""
    episodes: int = 50
    """test episodes for every weight and training seed"""
    tune_episodes: int | None = None
    """episodes on which the weight is chosen; as many as --episodes by default"""
    workers: int = 2
    """environment processes"""
    slots: int = 32
    """episodes that run at a time"""
    seed: int = 0
    """of the environments and the noise"""
    checkpoint: str = "last"
    """last, or a step"""
    data: Path | None = None
    """folder of the run's data (--critic's, if given), if they were moved"""
    denoise_steps: int | None = None
    """denoising steps T, by default those of training"""
    success: str | None = None
    """what tells success in a Gymnasium environment: a key of info, or return:NUMBER"""
    json: Path | None = None
    """also write the result here (it is always in RUN/eval.json)"""
    video: Path | None = None
    """also film the first test episode under every method as chosen, side by side (mp4)"""

    def __call__(self) -> None:
        _check_devices()
        from qgf.evaluation._evaluate import chosen_arms, evaluate, format_result
        from qgf.files import check_writable, write_json
        from qgf.run.evaluation import write_evaluation

        # What cannot be kept is said before the work, not after it.
        if self.json is not None:
            check_writable(self.json)
        if self.video is not None:
            from qgf.reports.video import check_filming, film
            from qgf.run.checkpoint import load_record

            check_filming(load_record(self.critic or self.run)["env"], self.video)
        result = evaluate(
            self.run,
            self.weights,
            methods=self.method,
            critic=self.critic,
            episodes=self.episodes,
            tune_episodes=self.tune_episodes,
            best_of=self.best_of,
            workers=self.workers,
            slots=self.slots,
            seed=self.seed,
            checkpoint=self.checkpoint,
            data=self.data,
            success=self.success,
            denoise_steps=self.denoise_steps,
        )
        print(format_result(result), flush=True)
        unwritten = None
        try:
            write_evaluation(self.run, result)
        except UserError as error:
            unwritten = error
        if self.json is not None:
            write_json(self.json, result.json())
            if unwritten is not None:
                print(f"qgf: {unwritten}; the result is in {self.json}", file=sys.stderr)
        elif unwritten is not None:
            raise unwritten
        if self.video is not None:
            film(
                self.run,
                self.video,
                chosen_arms(result),
                critic=self.critic,
                seed=self.seed,
                checkpoint=str(result.checkpoint),
                critic_checkpoint=str(result.critic_checkpoint),
            )
            print(f"video: {self.video}")


@dataclass(frozen=True)
class Compare:
    """Compare methods on tasks: train what is missing, evaluate all, write a leaderboard."""

    out: Path
    """folder of all runs and results; what it holds already is reused"""
    envs: tuple[str, ...]
    """one or more of …-singletask-taskN-v0, …-oraclerep-v0, gymnasium:ID and module:factory"""
    data: tuple[Path, ...]
    """recorded episodes for each: OGBench's datasets in any order; others, of any format that
    `qgf data inspect` reads, in the order of their environments"""
    obs: tuple[str, ...] | None = None
    """the recorded fields that are the observation, joined in this order"""
    action: str | None = None
    """the recorded field that is the action"""
    reward: str | None = None
    """what is paid: a recorded field, success, sparse, last-step, success-csv:FILE, or
    module:function"""
    success: str | None = None
    """what tells success in a Gymnasium environment: a key of info, or return:NUMBER"""
    methods: tuple[str, ...] = ("qgf", "bfn")
    """one or more of `qgf methods`; bc is always among them"""
    seeds: str = "0..1"
    """training seeds: 0..9 or 0,3,5"""
    episodes: int = 25
    """test episodes of a method, task and training seed"""
    tune_episodes: int = 5
    """episodes on which a domain's settings are chosen, of a task and training seed"""
    workers: int = 2
    """environment processes"""
    slots: int = 32
    """episodes that run at a time"""
    seed: int = 0
    """of the environments and the noise"""
    jobs: int | None = None
    """trainings that run side by side, each in a process of one thread; by default one per
    processor. 0, the default on a GPU: one after the other in this process"""
    executor: Literal["processes", "ray"] = "processes"
    """where trainings run: in processes here, or on a Ray cluster that shares the folders"""
    address: str | None = None
    """that of the Ray cluster, e.g. auto; without it one is started on this machine"""
    preset: Literal["laptop", "paper"] = "laptop"
    """the values below that are not given"""
    config: _Settings = PRESETS["laptop"]

    def __call__(self) -> None:
        _check_devices()
        from qgf.comparison._compare import compare
        from qgf.data import Fields
        from qgf.executor import for_training

        compare(
            self.envs,
            self.methods,
            self.data,
            self.out,
            self.config,
            seeds=_parse_seeds(self.seeds),
            episodes=self.episodes,
            tune_episodes=self.tune_episodes,
            workers=self.workers,
            slots=self.slots,
            seed=self.seed,
            fields=Fields(self.obs, self.action, self.reward),
            success=self.success,
            executor=for_training(self.executor, self.jobs, self.address),
        )
        print((self.out / "leaderboard.md").read_text("utf-8"))


@dataclass(frozen=True)
class _Recorded:
    """Options of every command that opens recorded data."""

    path: Positional[str]
    """file or folder of any format; FORMAT:PATH where several formats would fit"""
    obs: tuple[str, ...] | None = None
    """fields that are the observation, joined in this order"""
    action: str | None = None
    """field of the actions"""
    reward: str | None = None
    """field of the rewards; or success, sparse, last-step, success-csv:FILE, or module:function"""

    def fields(self) -> "Fields":
        from qgf.data.readers import Fields

        return Fields(self.obs, self.action, self.reward)


@dataclass(frozen=True)
class DataInspect(_Recorded):
    """Tell what recorded data hold, and what a critic would lack."""

    json: bool = False
    """as JSON"""

    def __call__(self) -> None:
        from qgf.data import format_inspection, inspect, open_recording

        found = inspect(open_recording(self.path), self.fields())
        if self.json:
            print(json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False))
        else:
            print(format_inspection(found))


@dataclass(frozen=True)
class DataConvert(_Recorded):
    """Write recorded data as a folder of ours."""

    out: Path = tyro.MISSING
    """a new folder"""

    def __call__(self) -> None:
        from qgf.data import convert, open_recording

        parts = convert(open_recording(self.path), self.fields(), self.out)
        said = (f"{len(part.ends)} episodes in {split}.npz" for split, part in parts.items())
        print(f"{self.out}: {', '.join(said)}")


@dataclass(frozen=True)
class DataLabel:
    """Ask of every episode whether it succeeded, beside a sheet of their last pictures."""

    path: Positional[str]
    """file or folder of any format; FORMAT:PATH where several formats would fit"""
    out: Path = Path("labels.csv")
    """the answers, which --reward success-csv:FILE takes; the sheet lies beside it, as PNG"""
    camera: str | None = None
    """which camera; by default the first one"""

    def __call__(self) -> None:
        from qgf.data import open_recording
        from qgf.data.labelling import label_episodes

        recording = open_recording(self.path)
        labels = label_episodes(recording, self.out, input, self.camera)
        won, count = sum(labels.values()), len(recording.ends)
        print(f"{self.out}: {len(labels)} of {count} episodes have a label, {won} succeed")


@dataclass(frozen=True)
class Data:
    """Look at recorded data of any format, label them, or write them as ours."""

    command: Annotated[
        Annotated[DataInspect, tyro.conf.subcommand("inspect", prefix_name=False)]
        | Annotated[DataConvert, tyro.conf.subcommand("convert", prefix_name=False)]
        | Annotated[DataLabel, tyro.conf.subcommand("label", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]

    def __call__(self) -> None:
        self.command()


@dataclass(frozen=True)
class Methods:
    """List all methods: what they train, what they are tuned by, and the idea."""

    def __call__(self) -> None:
        from qgf.methods.table import format_methods

        print(format_methods())


@dataclass(frozen=True)
class Study:
    """Check a figure of the paper: write its data, a figure and what they say."""

    name: Positional[str]
    """one of the studies, or all"""
    preset: Literal["smoke", "laptop", "paper"] = "laptop"
    """how much is measured"""
    out: Path = Path("out/studies")
    """folder of the results"""
    env: str | None = None
    """look at this task, or at the goals of this -oraclerep environment, instead (sensitivity,
    weight and q-optimizer)"""
    jobs: int | None = None
    """trainings that run side by side, as for `qgf compare`"""
    executor: Literal["processes", "ray"] = "processes"
    """where trainings run and data are collected: in processes here, or on a Ray cluster that
    shares the folders"""
    address: str | None = None
    """that of the Ray cluster, e.g. auto; without it one is started on this machine"""

    def __call__(self) -> None:
        _check_devices()
        from qgf._checkout import import_studies
        from qgf.executor import for_training

        studies = import_studies()
        executor = for_training(self.executor, self.jobs, self.address)
        for name in studies.STUDIES if self.name == "all" else [self.name]:
            said = studies.run_study(name, self.preset, self.out, self.env, executor)
            print(f"{name}: {said}", flush=True)


@dataclass(frozen=True)
class Report:
    """Write report.html and its pictures into a run's folder."""

    run: Positional[Path]
    """folder of the run, trained and evaluated"""
    video: bool = True
    """film a rollout, where rendering works"""

    def __call__(self) -> None:
        _check_devices()
        from qgf.reports._report import report

        print(f"report: {report(self.run, video=self.video)}")


@dataclass(frozen=True)
class Demo:
    """Collect, train, evaluate and report on cube-single, in one go."""

    out: Path = Path("demo")
    """folder of everything; run again, it reuses what is there"""
    workers: int = 2
    """processes"""

    def __call__(self) -> None:
        _check_devices()
        from qgf.demo import demo

        demo(self.out, workers=self.workers)


COMMANDS: dict[str, type] = {
    "collect": Collect,
    "train": Train,
    "eval": Eval,
    "compare": Compare,
    "data": Data,
    "methods": Methods,
    "study": Study,
    "report": Report,
    "demo": Demo,
}
# Options of several values, but for those of paths, which may hold a comma.
LISTS = {
    "--" + field.name.replace("_", "-")
    for kind in (*COMMANDS.values(), _Recorded)
    for field in dataclasses.fields(kind)
    if "tuple[" in str(field.type) and "Path" not in str(field.type)
}
MOST_SEEDS = 1_000


def _check_devices() -> None:
    """Raise UserError if JAX has none of the devices that it is told to use."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # it depends on the name which
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={jax.config.jax_platforms} on this machine; "
            "unset it, or for a GPU install qgf[cuda]"
        ) from None


def _parse_seeds(text: str) -> list[int]:
    span = re.fullmatch(r"(\d{1,10})\.\.(\d{1,10})", text, re.ASCII)
    if span:
        seeds = range(int(span[1]), int(span[2]) + 1)
    elif re.fullmatch(r"\d{1,10}(,\d{1,10})*", text, re.ASCII):
        seeds = [int(word) for word in text.split(",")]
    else:
        seeds = []
    if not seeds or len(seeds) > MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds must be like 0..9 or 0,3,5, of at most {MOST_SEEDS:,} seeds, got {text!r}"
        )
    return list(seeds)

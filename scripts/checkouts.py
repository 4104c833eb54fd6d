"""Run command lines of a checkout, and what `compare_checkouts.py` lets it run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PRELOAD = "torch, transformers, accelerate, pydantic, typer, sklearn.datasets"
"""Imported once for all commands of a checkout, each of which then runs in a fork."""

_DRIVER = """
import contextlib, importlib, json, os, runpy, signal, sys, time
from pathlib import Path

def child(argv, out, err):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, fd in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.argv = ["apd", *argv]
    code = 1
    try:
        runpy.run_module("apd", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

tree, preload, jobs = json.load(sys.stdin)
for name in filter(None, preload.split(", ")):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
import apd
if not Path(apd.__file__).resolve().is_relative_to(Path(tree).resolve()):
    sys.exit(f"{apd.__file__} is not in {tree}")
for job in jobs:
    base = Path("answers") / job["key"]
    start = time.perf_counter()
    pid = os.fork()
    if not pid:
        child(job["argv"], f"{base}.out", f"{base}.err")
    ended, status = 0, 0
    while job["stop"] and not ended:  # until the file has that many lines; then Ctrl-C
        log, lines = job["stop"]
        if Path(log).exists() and Path(log).read_text().count("\\n") >= lines:
            os.kill(pid, signal.SIGINT)
            break
        time.sleep(0.01)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        status = os.waitpid(pid, 0)[1]
    seconds = time.perf_counter() - start
    answer = {"argv": job["argv"], "code": os.waitstatus_to_exitcode(status), "seconds": seconds}
    answer |= {key: Path(f"{base}.{key}").read_text(errors="replace") for key in ("out", "err")}
    Path(f"{base}.json").write_text(json.dumps(answer))
"""

PLANNER = """
import json, sys
from apd.bench import load_suite
from apd.bench.plan import make_plan
from apd.errors import InputError

def rows(suite, block, method):
    one = suite.model_copy(update={"blocks": (block.model_copy(update={"methods": (method,)}),)})
    try:
        plan = make_plan(one)
    except TypeError:
        plan = make_plan(one, "cpu")
    return json.loads(plan.to_json())["entries"]  # as in the file: its names stay, classes may change

answer = {}
for file in json.load(sys.stdin):
    found = answer[file] = {"rows": [], "skipped": {}}
    try:
        suite = load_suite(file)
    except InputError as error:
        found["skipped"] = {"": str(error)}
        continue
    for block in suite.blocks:
        for method in block.methods:
            try:
                found["rows"] += rows(suite, block, method)
            except InputError as error:
                found["skipped"][method] = str(error)
print(json.dumps(answer))
"""

SHORT = ["--shots", "2", "--epochs", "1", "--eps", "8/255", "--device", "cpu", "--set", "train.batch_size=4"]
VARIANTS: dict[str, str] = {
    "balance 0.5": "method.balance=0.5",
    "tuned teacher": "method.teacher=tuned",
    "online teacher": "method.teacher=online",
    "online teacher, feedback": "method.teacher=online method.feedback=0.5",
    "inner ce": "method.inner=ce",
    "inner kl": "method.inner=kl",
    "inner teacher-kl": "method.balance=0.5 method.inner=teacher-kl",
    "inner teacher-pair": "method.inner=teacher-pair",
    "variant ard": "method.variant=ard",
    "variant rslad": "method.variant=rslad",
    "variant iad": "method.variant=iad",
    "variant adaad": "method.variant=adaad",
    "variant mtard": "method.variant=mtard method.robust_teacher=glyphs",
    "all terms": "method.clean_ce=0.5 method.clean_kl=0.5 method.image_features=0.5 method.text_features=0.5 method.tau=2",
    "free": "method.balance=0.5 train.attack.kind=free train.attack.replays=2 train.epochs=2",
    "carried": "method.balance=0.5 train.attack.kind=carried train.epochs=2",
    "fgsm-rs": "train.attack.kind=fgsm-rs",
    "n-fgsm": "train.attack.kind=n-fgsm",
    "no random start": "train.attack.random_start=false method.inner=ce",
    "stop margin": "method.inner=ce train.attack.stop_margin=0.2 train.attack.steps=4 train.attack.step_size=0.5",
    "attack on the margin": "method.inner=ce train.attack.loss=margin",
    "attack on DLR": "method.inner=ce train.attack.loss=dlr",
    "attack on KL": "method.balance=0.5 method.inner=ce train.attack.loss=kl",
    "l2": "train.norm=l2 train.eps=0.5",
    "SAM": "method.balance=0.5 train.optimizer.sam=0.05",
    "AWP": "method.balance=0.5 train.optimizer.awp=0.005",
    "AWP, n-fgsm": "train.optimizer.awp=0.005 train.attack.kind=n-fgsm",
    "SGD": "train.optimizer.name=sgd",
    "SWA": "train.swa=0.5",
    "EMA": "method.balance=0.5 train.ema=0.9",
    "eps warm-up": "train.eps_warmup_epochs=1 train.eps_warmup_from=0.2",
    "label smoothing": "method.balance=0.5 train.label_smoothing=0.1",
    "bf16": "train.precision=bf16",
    "class-specific": "method.balance=0.5 method.prompts.class_specific=true",
    "frame": "method.prompts.frame=0.1",
    "text to vision": "method.prompts.text_tokens=4 method.prompts.visual_tokens=4 method.prompts.coupling=text-to-vision",
    "words": "method.prompts.words=a+clear+photo method.prompts.deep_words=false",
    "seed 1": "train.seed=1",
}
"""Settings of APD, each a training of its own. On so few digits the balance comes out as 1, which leaves the hard label out."""


EVALUATED = {
    "apd": "pgd-10,apgd-ce",
    "apd, class-specific": "pgd-10",
    "apd, frame": "pgd-10",
    "testbed, apd": "pgd-10",
}
"""Which trainings are evaluated, and under which attacks."""
SUITE = """name: compare
model: glyphs
limit: 20
attacks: pgd-5
train: {epochs: 1, batch_size: 8}
data: {digits: {source: digits, eps: 8/255, shots: 2}}
methods: {zero-shot: null, vlp: vlp, apd: apd}
blocks:
  - {protocol: few-shot, data: digits, methods: [METHODS]}
"""


@dataclass(frozen=True)
class Job:
    """A command line of ``apd``; ``stop`` is a log and the number of its lines at which Ctrl-C is pressed."""

    name: str
    argv: tuple[str, ...]
    stop: tuple[str, int] | None = None

    @property
    def key(self) -> str:
        """The name of the answer's files."""
        return hashlib.sha256(json.dumps([self.name, self.argv, self.stop]).encode()).hexdigest()[:16]


@dataclass
class Side:
    """One checkout and the folder that its commands run in; a command that has an answer there is not run again."""

    name: str
    tree: Path
    root: Path
    python: str

    def python_code(self, code: str, given: object) -> str:
        """Run Python code with this checkout's package; returns its standard output.

        Raises:
            ChildProcessError: the code failed.
        """
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")}
        env = {**os.environ, **threads, "PYTHONPATH": str(self.tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.python, "-c", code]
        done = subprocess.run(
            command, input=json.dumps(given), text=True, cwd=self.root, env=env, stdout=subprocess.PIPE
        )
        if done.returncode:
            raise ChildProcessError(f"{self.name}: exit code {done.returncode}, see standard error")
        return done.stdout

    def do(self, jobs: Iterable[Job]) -> dict[str, dict[str, Any]]:
        """Answers by name: exit code, standard output and error, seconds."""
        wanted = {job.name: job for job in jobs}
        files = {name: self.root / "answers" / f"{job.key}.json" for name, job in wanted.items()}
        todo = [asdict(wanted[name]) | {"key": wanted[name].key} for name, file in files.items() if not file.exists()]
        if todo:
            print(f"{self.name}: {len(todo)} commands ...", file=sys.stderr, flush=True)
            (self.root / "answers").mkdir(exist_ok=True)
            for job in todo:  # what an interrupted comparison left behind
                if "--output" in job["argv"] and "--resume" not in job["argv"] and job["argv"][0] == "train":
                    shutil.rmtree(self.root / job["argv"][-1], ignore_errors=True)
            self.python_code(_DRIVER, [str(self.tree), PRELOAD, todo])
        return {name: json.loads(file.read_text()) for name, file in files.items()}

    def run(self, name: str) -> Path:
        """The run folder of a training."""
        return self.root / run_folder(name)


def run_folder(name: str) -> str:
    """Where a training goes, below the side's folder."""
    return "runs/" + "".join(letter if letter.isalnum() else "-" for letter in name)


def training(name: str, sets: str = "", data: Sequence[str] = ("digits",), method: str = "apd") -> Job:
    """A short training; ``sets`` are settings with a space between."""
    given = [part for pair in sets.split() for part in ("--set", pair.replace("+", " "))]
    return Job(name, ("train", *data, "--method", method, *SHORT, *given, "--output", run_folder(name)))


def trainings(methods: Sequence[str], testbed: Path | None) -> dict[str, Job]:
    """All trainings that are compared, by name."""
    jobs = [training(method, method=method) for method in methods]
    jobs += [training(f"apd, {name}", sets) for name, sets in VARIANTS.items()]
    if testbed:
        model = ("--model", str(testbed / "clip"))
        cifar = (str(testbed / "data" / "cifar10"), *model)
        coop = (str(testbed / "data" / "caltech101" / "split_zhou_Caltech101.json"), *model)
        jobs += [training(f"testbed, {m}", data=cifar, method=m) for m in methods]
        jobs += [training("testbed, caltech101", "data.shots=1 train.batch_size=32", coop)]
    return {job.name: job for job in jobs}


def evaluation(run: str, attack: str) -> Job:
    """An evaluation of 40 images, named after its folder."""
    given = ("--attack", attack, "--limit", "40", "--batch-size", "40", "--device", "cpu", "--json")
    return Job(f"evaluate {run}", ("evaluate", run, *given))


def predict(run: str, images: Sequence[str]) -> Job:
    """A prediction for some image files."""
    return Job("predict", ("predict", run, *images, "--json"))


def bench(side: Side, methods: str, output: str) -> Job:
    """A small suite with some methods."""
    file = f"{methods.replace(', ', '-')}.yaml"
    (side.root / file).write_text(SUITE.replace("METHODS", methods))
    return Job(f"bench {output}", ("bench", file, "--workers", "1", "--gpus", "0", "--output", output))


def fingerprint(tree: Path, python: str) -> str:
    """Hash of a checkout's sources, of the Python that runs them, and of this file, which names the runs."""
    digest = hashlib.sha256(python.encode() + Path(__file__).read_bytes())
    for file in sorted((tree / "src").rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(tree)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]

"""Keeps the promises of the run folder and trains nothing: ``train RECIPE --run-dir DIR``, ``resume DIR``.

How it behaves is told by ``--behave`` before the verb: ``train`` (50 steps a second until it is told to
stop, or ``--steps`` are done), ``slow-start``, ``gate`` (takes the run's lock once there is a file ``gate``),
``exit1``, ``exit2``, ``gpu-oom``, ``kill9``, ``flood``, ``hears-term`` (no control file, only SIGTERM),
``deaf`` (neither; its child is as deaf). A checkpoint is
saved every ten steps. ``sample DIR`` writes down what it is asked to draw, and draws it in one colour
(``slow-draw``: a picture takes until there is a file ``gate``; ``exit1``: the second one fails).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trainer.contract.drawings import Drawing, note_drawing
from trainer.contract.errors import RunError
from trainer.contract.events import EventLog
from trainer.contract.prompt import split_prompt
from trainer.contract.runs import RunFolder, Status
from trainer.contract.whole import list_checkpoints, step_of


def main() -> int:
    if "fetch" in sys.argv:  # which trains nothing either
        from trainer.__main__ import main as trainer

        return trainer(sys.argv[sys.argv.index("fetch") :])
    parser = argparse.ArgumentParser()
    parser.add_argument("--behave", default="train")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("verb", choices=("train", "resume", "sample"))
    parser.add_argument("target")
    parser.add_argument("--run-dir")
    parser.add_argument("--prompt", action="append")
    parser.add_argument("--step", type=int)
    options = parser.parse_args()
    run = RunFolder(Path(options.run_dir or options.target))
    print(f"stand-in {options.verb}", "HF_TOKEN" in os.environ, "STUDIO_PASSWORD" in os.environ, flush=True)
    if options.verb == "sample":
        (run.path / "drawings.json").write_text(json.dumps([options.prompt, options.step, _devices()]))
        return _draw(run, options)
    if options.behave == "exit2":
        print("train.steps = 'many' is not allowed; give a whole number ≥ 1", flush=True)
        return 2
    if options.behave == "slow-start":
        time.sleep(1.0)
    while options.behave == "gate" and not (run.path / "gate").exists():
        time.sleep(0.02)
    run.config()
    try:
        lock = run.hold()
    except RunError as error:
        print(f"error: {error}", flush=True)
        return 2
    earlier = run.raw_status()
    attempt, step = earlier.attempt + 1, earlier.step
    events = EventLog(run.events, attempt)
    events.append("started", step=step, total=options.steps)

    def tell(state: str, **more: object) -> None:
        run.write_status(
            Status.model_validate(
                {
                    "state": state,
                    "step": step,
                    "total": options.steps,
                    "loss": 0.5,
                    "attempt": attempt,
                    "heartbeat": time.time(),
                    **more,
                }
            )
        )

    def end(state: str, code: int) -> int:
        tell(state)
        events.append("end", state=state, step=step)
        events.close()
        lock.release()
        return code

    asked: list[int] = []
    if options.behave == "deaf":
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", deaf])
        (run.path / "child.json").write_text(json.dumps(child.pid))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.behave == "hears-term":
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    print("devices", _devices(), flush=True)
    tell("training")
    while step < options.steps:
        step += 1
        events.append("step", step=step, loss=1 / step, lr=1e-4, grad_norm=1.0, seconds=0.02)
        tell("training")
        print(f"step {step}", flush=True)
        if options.behave == "flood":
            print("x" * 200_000, flush=True)
        if options.behave == "exit1" and step == 3:
            print("ZeroDivisionError: division by zero", flush=True)
            return 1
        if options.behave == "gpu-oom" and step == 3:
            print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
            os._exit(1)
        if options.behave == "kill9" and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 10 == 0:
            run.checkpoint(step).mkdir(exist_ok=True)
            (run.checkpoint(step) / "MANIFEST.json").write_text("{}")
        heard = options.behave not in ("deaf", "hears-term") and "stop" in run.take_controls()
        if heard or asked:
            return end("stopped", 3)
        time.sleep(0.02)
    run.result(run.config()).write_bytes(b"weights of the stand-in " * 100)
    events.append("saved", step=step, file=run.result(run.config()).name)
    return end("finished", 0)


def _draw(run: RunFolder, options: argparse.Namespace) -> int:
    from PIL import Image

    step = options.step or max(step_of(path) for path in list_checkpoints(run.checkpoints))
    for number, line in enumerate(options.prompt):
        while number and options.behave == "slow-draw" and not (run.path / "gate").exists():
            time.sleep(0.02)
        if number and options.behave == "exit1":
            print("error: the GPU ran out of memory", flush=True)
            return 1
        text, flags = split_prompt(line)
        name = f"{time.time_ns()}-{number}.webp"
        run.drawings.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (40 * number % 256, 120, 90)).save(run.drawings / name, "WEBP")
        note_drawing(run, Drawing(file=name, text=text, seed=flags["seed"], step=step, time=time.time()))
    return 0


def _devices() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


if __name__ == "__main__":
    sys.exit(main())

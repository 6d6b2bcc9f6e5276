"""The same run as 1, 2 and 4 processes, and with accumulation: first gradients, weights after 10 steps, loss curves.

python tests/programs/equality.py            # every case, both objectives, about ten minutes on two cores
python tests/programs/equality.py --short    # two cases in float64, for the test suite

Each case is a real run of main.py, on gloo where it has several processes, that starts from the same weights. The
reference is one process with the whole batch of 16. Dropout is off: it is the one documented difference between
numbers of processes. The float32 gradient is also compared with the same run's in float64, which tells how exact
float32 can be here. Exit code 1 if a bar is missed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forked  # isort: skip  (before torch)
import torch

CASES = {  # name: processes, arguments
    "1 process, batch 16": (1, "--batch-size 16"),
    "2 processes, batch 8": (2, "--batch-size 8"),
    "4 processes, batch 4": (4, "--batch-size 4"),
    "1 process, batch 4, update-freq 4": (1, "--batch-size 4 --update-freq 4 --grad-cache"),
    "2 processes, batch 4, update-freq 2": (2, "--batch-size 4 --update-freq 2"),
}
# name: arguments, whether accumulation is equal too, whether float32 is held to its bar. ReLUs and max pooling, as
# ResNets have them, have steps in their gradient: there a rounding error of one value moves float32 by more.
MODELS = {
    "test_vit (layer norms)": ("--arch test_vit", True, True),
    "test_efficientnet (batch norms over all processes)": ("--arch test_efficientnet", False, True),
    "resnet10t --freeze-bn": ("--arch resnet10t --freeze-bn", True, True),
    "resnet10t (batch norms over all processes)": ("--arch resnet10t", False, False),
}
GRADIENT_BAR, WEIGHTS_BAR = 1e-5, 1e-8


def record(dtype: torch.dtype, path: Path):
    """Set-up within a run: its floating-point type; the first gradient and each step's loss go to `path` (rank 0)."""

    def setup():
        import os

        from training.update import Update
        from training.verdicts import Verdicts

        torch.set_default_dtype(dtype)
        kept = {"gradient": {}, "loss": []}
        judge = Verdicts.judge

        def judge_and_keep(self, found):
            kept["loss"].append(found.values[0].item())
            judge(self, found)
            if os.environ.get("RANK", "0") == "0":
                torch.save(kept, path)

        change_weights = Update.change_weights

        def keep_and_change(self, values):
            if not kept["gradient"]:
                kept["gradient"] = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
            return change_weights(self, values)

        Verdicts.judge, Update.change_weights = judge_and_keep, keep_and_change

    return setup


class Runs:
    """Runs of one model and objective in a folder of their own."""

    def __init__(self, folder: Path, objective: str, words: str):
        self.folder = folder
        self.words = [
            "--root", forked.make_data(folder, 160, 4), "--text-model", forked.make_text_model(folder),
            "--objective", objective, *forked.TINY, *words.split(),
        ]  # fmt: skip

    def warm_up(self) -> None:
        """Three epochs: random weights give all images nearly one embedding, and float32 gradients few digits."""
        out = self.folder / "warm"
        self.run(1, ["--batch-size", "16", "--epochs", "3", "--lr", "1e-3", "--output-dir", out], None, out)
        self.words += ["--pretrained", out / "checkpoint.pt"]

    def case(self, name: str, dtype: torch.dtype) -> tuple[dict, list, dict]:
        """-> the first gradient, the losses, the weights after 10 steps."""
        world, words = CASES[name]
        out = Path(tempfile.mkdtemp(dir=self.folder))
        schedule = "--epochs 1 --warmup-epochs 0 --lr 1e-3 --eval-freq 9".split()
        setup = record(dtype, out / "kept.pt")
        self.run(world, [*words.split(), *schedule, "--output-dir", out], setup, out)
        kept = forked.read(out / "kept.pt")
        return kept["gradient"], kept["loss"], forked.read(out / "checkpoint.pt")["model"]

    def run(self, world: int, words, setup, out: Path) -> None:
        out.mkdir(exist_ok=True)
        codes = forked.wait(forked.start_ranks(world, [*self.words, *words], out / "run.log", setup))
        if any(codes):
            sys.exit(f"{words}: exit codes {codes}\n{(out / 'run.log').read_text()}")


def compare(runs: Runs, cases: list[str], singles: bool, held: bool) -> bool:
    """Print a line a case -> whether the bars are met. `singles`: float32 too; `held`: to its bar."""
    good, curves, reference = True, {}, None
    for name in (next(iter(CASES)), *cases):
        gradient, curves[name], weights = runs.case(name, torch.float64)
        single = runs.case(name, torch.float32)[0] if singles else gradient
        if reference is None:
            reference = (gradient, single, weights)
            if singles:
                print(f"  {name:38s} float32 gradient {forked.relative(single, gradient):.1e} from its float64's")
            continue
        floats = [key for key, value in weights.items() if value.is_floating_point()]
        apart, worst = max(((weights[key] - reference[2][key]).abs().max().item(), key) for key in floats)
        exact, near = forked.relative(gradient, reference[0]), forked.relative(single, reference[1])
        passed = apart < WEIGHTS_BAR and exact < GRADIENT_BAR and (near < GRADIENT_BAR or not held)
        good &= passed
        print(
            f"  {name:38s} first gradient: float64 {exact:.1e}"
            + (f", float32 {near:.1e} ({forked.relative(single, gradient):.1e} from its float64's)" if singles else "")
            + f"; weights after 10 steps, float64: {apart:.1e} ({worst}){'' if passed else '  MISSED'}",
            flush=True,
        )
    print("  loss at steps 0 to 9, float64:")
    for name, curve in curves.items():
        print(f"  {name:38s} " + " ".join(f"{value:.6f}" for value in curve), flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    print(f"torch {torch.__version__}; bars: first gradient {GRADIENT_BAR:.0e} relative, weights {WEIGHTS_BAR:.0e}")
    good = True
    for objective in ("slip",) if short else ("clip", "slip"):
        for model, (words, accumulates, held) in list(MODELS.items())[:2] if short else MODELS.items():
            cases = [name for name in CASES if accumulates or "update-freq" not in name][1:]
            if short:
                cases = cases[-1:] if accumulates else cases[:1]
            print(f"--objective {objective}, {model}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                runs = Runs(Path(folder), objective, words)
                if not short:
                    runs.warm_up()
                good &= compare(runs, cases, not short, held)
    print("every bar is met" if good else "A BAR WAS MISSED")
    sys.exit(not good)


if __name__ == "__main__":
    main()

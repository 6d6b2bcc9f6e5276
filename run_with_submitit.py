"""Send main.py to a Slurm cluster, or run it here in the same way with --cluster local or debug.

python run_with_submitit.py --partition gpu --ngpus 8 --root /data/roco --pretrained medclip
"""

import options

if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong flag answer at once
    ARGS = options.parse(options.add_slurm(options.train_parser()))

import contextlib
import copy
import importlib
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import submitit

from utils import InputError

SLURM_SECONDS = 120  # within which Slurm ends the processes of a job that it requeues or cancels


class Job:
    """One task of the job: joins the process group that Slurm's variables describe, and calls the script's main.

    It holds nothing but the arguments, so the first submission and a requeued one are the same: the script goes on
    with the checkpoint in its output folder.
    """

    def __init__(self, script: str, args):
        self.script, self.args = script, args

    def __call__(self):
        folder = str(Path(__file__).resolve().parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        module = importlib.import_module(self.script)  # options first, which sets what OpenMP reads
        import distributed
        import utils

        args = copy.copy(self.args)
        job = submitit.JobEnvironment()
        # The environment's own folder has %j filled in; SUBMITIT_FOLDER has not.
        args.output_dir = str(args.output_dir or job.paths.folder).replace("%j", str(job.job_id))
        # submitit's own, which asks Slurm for another turn. main catches the signal first, to end at a step.
        requeue = signal.getsignal(job._usr_sig())

        def main(args):
            try:
                module.main(args)
            except utils.Interrupted as stop:
                if job._usr_sig() in stop.signals and job.global_rank == 0 and callable(requeue):
                    requeue(job._usr_sig(), None)  # exits
                if job.cluster == "slurm":
                    # Leaving would end the job for good. Rank 0 is asking for its requeue, or, after a SIGTERM, Slurm
                    # itself is about to cancel or to pre-empt it: all is saved, so it may end this process.
                    time.sleep(SLURM_SECONDS)
                raise

        distributed.run_script(main, args)

    def checkpoint(self):
        """Called before a pre-emption or time limit: the same job again."""
        return submitit.helpers.DelayedSubmission(Job(self.script, self.args))


def visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def launch(script: str, args) -> None:
    """Submit `script`'s main with `args`. Slurm: print the job's number. Local and debug: wait for the end.

    Raises InputError if the cluster refuses the job, or a local one fails.
    """
    job_dir = Path(args.job_dir).expanduser().absolute()
    here = args.cluster != "slurm"
    if args.cluster == "debug":  # there the job has no folder of its own
        args.output_dir = args.output_dir or str(job_dir)
    args.ngpus = args.ngpus or ((visible_gpus() or 1) if here else 8)
    # The class travels in the job's pickle: the job's Python need not find this file before it starts.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        executor = submitit.AutoExecutor(
            folder=job_dir, cluster=args.cluster, **({} if here else {"slurm_max_num_timeout": 30})
        )
        executor.update_parameters(
            name=script, nodes=args.nodes, tasks_per_node=args.ngpus, timeout_min=args.timeout,
            gpus_per_node=min(args.ngpus, visible_gpus()) if here else args.ngpus,
            cpus_per_task=args.cpus_per_task, mem_gb=args.mem_gb or 40 * args.ngpus,
        )  # fmt: skip
        if not here:
            flags = ("partition", "constraint", "account", "qos", "comment")
            given = {f"slurm_{flag}": getattr(args, flag) for flag in flags if getattr(args, flag)}
            executor.update_parameters(slurm_signal_delay_s=120, **given)
        job = executor.submit(Job(script, args))
    except (RuntimeError, OSError, ValueError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"--cluster {args.cluster}: {' '.join(str(error).split())}") from None
    print(f"job {job.job_id}: {job.paths.folder}", flush=True)
    if not here:
        return
    try:
        if args.cluster == "local":
            job.wait()
            if not all(job.task(number).paths.result_pickle.exists() for number in range(args.ngpus)):
                raise RuntimeError  # at once: job.results() would look for it for 15 s
        job.results()
    except (Exception, SystemExit):
        if args.cluster == "debug":  # in this process, which has said why
            raise
        last = (job.stderr() or "no output").strip().splitlines()[-1]
        raise InputError(f"job {job.job_id} failed: {last} (all of it: {job.paths.stderr})") from None
    print(job.stdout() or "", end="")
    with contextlib.suppress(OSError):
        job_dir.rmdir()  # submitit's local runner also makes a folder named by the literal %j, and leaves it empty


def run(script: str, args) -> None:
    try:
        launch(script, args)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run("main", ARGS)

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

SLURM_SECONDS = 120  # the most that Slurm takes to end the processes of a job that it requeues or cancels


class Job:
    """What each process of the job does: join the process group that Slurm's variables describe, and call main.

    It holds the arguments alone, so that a requeued job is the same as the first one: the script finds the checkpoint
    in its output folder and goes on with it.
    """

    def __init__(self, script: str, args):
        self.script, self.args = script, args

    def __call__(self):
        folder = str(Path(__file__).resolve().parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        module = importlib.import_module(self.script)  # it imports options before torch: that sets what OpenMP reads
        import distributed
        import utils

        args = copy.copy(self.args)
        job = submitit.JobEnvironment()
        # job.paths.folder has the job's number in place of %j; the variable SUBMITIT_FOLDER has not.
        args.output_dir = str(args.output_dir or job.paths.folder).replace("%j", str(job.job_id))
        # submitit's handler asks Slurm to requeue the job. main replaces it by its own, to end between two steps; the
        # one here is then called by hand.
        requeue = signal.getsignal(job._usr_sig())

        def main(args):
            try:
                module.main(args)
            except utils.Interrupted as stop:
                if job._usr_sig() in stop.signals and job.global_rank == 0 and callable(requeue):
                    requeue(job._usr_sig(), None)  # exits
                if job.cluster == "slurm":
                    # A process that exits here would end the job for good. Everything is saved, so wait until Slurm
                    # ends this process: it requeues the job as rank 0 asks, or cancels or pre-empts it (SIGTERM).
                    time.sleep(SLURM_SECONDS)
                raise

        distributed.run_script(main, args)

    def checkpoint(self):
        """submitit calls this before a pre-emption or time limit -> what to submit: the same job again."""
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
    if args.cluster == "debug":  # there submitit makes no folder for the job
        args.output_dir = args.output_dir or str(job_dir)
    args.ngpus = args.ngpus or ((visible_gpus() or 1) if here else 8)
    # Put the class itself into the job's pickle: the job's Python cannot import this file before Job sets sys.path.
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
                raise RuntimeError  # job.results() would look for a result for 15 s first
        job.results()
    except (Exception, SystemExit):
        if args.cluster == "debug":  # the job ran in this process, and its error has been printed
            raise
        last = (job.stderr() or "no output").strip().splitlines()[-1]
        raise InputError(f"job {job.job_id} failed: {last} (all of it: {job.paths.stderr})") from None
    print(job.stdout() or "", end="")
    with contextlib.suppress(OSError):
        job_dir.rmdir()  # submitit's local runner also makes a folder that is literally named %j, and leaves it empty


def launch_or_exit(script: str, args) -> None:
    """`launch`; an InputError is printed as one line, and the exit code is then 2."""
    try:
        launch(script, args)
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    launch_or_exit("main", ARGS)

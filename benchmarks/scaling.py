"""docs/SCALING.md's model of a step against gloo runs of 1, 2 and 4 processes.

python benchmarks/scaling.py

Each process has one thread and steps a model of its own under DistributedDataParallel. Measured with one process: the
compute of a step. Measured with two: an all-reduce of the gradient's bytes and an all-gather of the embeddings. The
model then predicts 2 and 4 processes on these cores.
"""

import argparse
import os
import socket
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import losses
import models
import distributed

ARCH, SIZE, BATCH = "resnet10t", 96, 16


def seconds_of(function, repeats: int) -> float:
    function()
    found = []
    for _ in range(repeats):
        if distributed.world_size() > 1:
            dist.barrier()
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def one_rank(rank: int, world: int, port: int, repeats: int, results) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = models.create_model(ARCH, "simclr", image_size=SIZE, ssl_mlp_dim=512)
    network = model
    if world > 1:
        network = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    views = {name: torch.randn(BATCH, 3, SIZE, SIZE) for name in ("aug1", "aug2")}
    loss = losses.SimCLRLoss()

    def step():
        loss(network(**views))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    found = {"step": seconds_of(step, repeats)}
    if world > 1:
        flat = torch.zeros(sum(p.numel() for p in model.parameters()))
        rows = torch.zeros(BATCH, 256)
        found["all-reduce"] = seconds_of(lambda: dist.all_reduce(flat), repeats)
        found["all-gather"] = seconds_of(lambda: distributed.gather(rows).sum(), repeats)  # waits
        dist.destroy_process_group()
    if rank == 0:
        results.put(found)


def run(world: int, repeats: int) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.start_processes(one_rank, (world, port, repeats, results), nprocs=world, start_method="spawn")
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    say = common.Record("scaling", "timm")
    found = {world: run(world, args.repeats) for world in (1, 2, 4)}
    cores = len(os.sched_getaffinity(0))
    say(
        f"{ARCH}, simclr, {SIZE} px, {BATCH} a process, one thread each; medians of {args.repeats} steps; {cores} cores"
    )
    for world, times in found.items():
        crowd = max(1, world / cores)  # processes a core
        predicted = found[1]["step"] * crowd + times.get("all-reduce", 0) + 2 * times.get("all-gather", 0)
        listed = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in times.items())
        say(
            f"  {world} processes: {listed}; the model says {1e3 * predicted:.1f} ms; "
            f"measured / model {times['step'] / predicted:.2f}"
        )
    say.save()


if __name__ == "__main__":
    main()

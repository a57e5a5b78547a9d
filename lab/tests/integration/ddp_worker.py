"""Trains a relaxed model on one or more processes with the same global batch;
rank 0 writes its state. Run by test_ddp.py.

torchrun --nproc-per-node N ddp_worker.py METHOD OUTPUT
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from test_runtime import batches, setup, train
from torch.nn.parallel import DistributedDataParallel


def main(method: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model, made, optimizer = setup(method)
    parallel = DistributedDataParallel(model)
    local = [(x[rank::size], y[rank::size]) for x, y in batches()]
    train(model, made, optimizer, forward=parallel, steps=local)
    if rank == 0:
        torch.save({"model": model.state_dict(), "method": made.state_dict()}, output)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    # The CPU build of torch now and then aborts in its threads' destructors when a gloo process exits (seen
    # in 3 of 50 runs); everything is written by now, so leave without them.
    sys.stdout.flush()
    os._exit(0)

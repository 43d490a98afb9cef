"""What each job asks of a machine, and which jobs start first."""

# Priorities of jobs that others wait for. Without them the longest ones, the alignments, start in any order among the
# evaluations, and a run ends with cores that have nothing to do.
EARLIEST, EARLY = 2, 1


def asks(field):
    return lambda wc: getattr(EXPERIMENT.models[wc.model].resources, field)


def one_gpu(wc):
    """Encoding and drawing use one GPU; several such jobs run side by side."""
    return min(1, EXPERIMENT.models[wc.model].resources.gpus)


def threads_of_one_gpu(wc):
    """The share of a job's threads that belongs to one of its GPUs: they decode images while it encodes."""
    asked = EXPERIMENT.models[wc.model].resources
    return max(1, asked.threads // max(1, asked.gpus))


def memory(wc, attempt):
    """Half as much again after every failure."""
    return EXPERIMENT.models[wc.model].resources.memory_mb * (1 + attempt) // 2


def launcher(model):
    """What starts an alignment: the verb itself on one GPU or none, torchrun on more, srun before it on nodes."""
    asked = EXPERIMENT.models[model].resources
    torchrun = "python3 -m torch.distributed.run"
    if asked.gpus <= 1 and asked.nodes == 1:
        return "python3 -m reca"
    if asked.nodes == 1:
        return f"{torchrun} --standalone --nproc-per-node={asked.gpus} -m reca"
    # The Slurm jobstep drops SLURM_* except the job id, so the allocation is named again.
    head = "$(scontrol show hostnames $(squeue -h -j $SLURM_JOB_ID -o %N) | head -n 1)"
    return (
        f"srun --nodes={asked.nodes} --ntasks={asked.nodes} --ntasks-per-node=1"
        f" --cpus-per-task={asked.threads} --gres=gpu:{asked.gpus} --kill-on-bad-exit=1"
        f" {torchrun} --nnodes={asked.nodes} --nproc-per-node={asked.gpus} --rdzv-backend=c10d"
        f" --rdzv-endpoint={head}:29531 --rdzv-id=$SLURM_JOB_ID -m reca"
    )

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


def grown(megabytes, attempt):
    """Half as much again after a failure, once: jobs are lost for other reasons, too, and nodes have an end."""
    return megabytes * 3 // 2 if attempt > 1 else megabytes


def memory(wc, attempt):
    """Of an alignment: all ranks of a node."""
    return grown(EXPERIMENT.models[wc.model].resources.memory_mb, attempt)


def memory_of_one_gpu(wc, attempt):
    """The share of an alignment's memory that belongs to one of its GPUs."""
    asked = EXPERIMENT.models[wc.model].resources
    return grown(asked.memory_mb // max(1, asked.gpus), attempt)


def memory_of_observing(wc, attempt):
    """Of the network that looks at samples, whichever model made them."""
    if not one_gpu(wc):  # a laptop's model: what looks at its samples is as small
        return memory(wc, attempt)
    return grown(EXPERIMENT.benchmarks[wc.benchmark].memory_mb, attempt)


def launcher(model):
    """What starts an alignment: the verb itself on one GPU or none, torchrun on more, srun before it on nodes."""
    asked = EXPERIMENT.models[model].resources
    threads = max(1, asked.threads // max(1, asked.gpus))  # of one rank
    torchrun = f"env OMP_NUM_THREADS={threads} python3 -m torch.distributed.run"
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


def one_gpu_job_at_a_time():
    """Without a scheduler every job takes the first GPU that it sees; `--resources gpu=N` says otherwise."""
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", 1)

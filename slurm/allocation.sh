#!/bin/bash
# Snakemake inside an allocation: takes a node and fills it. In the folder of the repository:
#   sbatch slurm/allocation.sh results/paper/tables/table2.md
# Submit it again until it says that nothing is to be done. docs/site.md explains it.
#SBATCH --job-name=edm --output=edm-%j.log
#SBATCH --nodes=1 --exclusive --gpus-per-node=8
#SBATCH --time=24:00:00
# A quarter of an hour before the limit, the steps stop as after Ctrl-C; slow disks may need more.
#SBATCH --signal=B:TERM@900

# module load python/3.12
source .venv/bin/activate
# On the node's own disk: the processes share one unpacked copy of each dataset there.
export EDM_CACHE="${EDM_CACHE:-${TMPDIR:-/tmp}/edm-$USER}"

set -m                # the steps are a process group, which the signal reaches as a whole
snakemake --unlock    # what a killed job left: run one such job at a time
snakemake --cores all --resources gpu="${SLURM_GPUS_ON_NODE:-0}" --keep-going "$@" &
trap 'kill -INT -- "-$!"' TERM
wait "$!"
wait "$!"             # the first one ends with the signal

#!/usr/bin/env bash
# Submits a training run to SLURM, one process per GPU; the job requeues itself until the run is finished.
#
#   NODES=2 GPUS=8 TIME=24:00:00 scripts/launch/slurm.sh [--dry-run] --run_dir /shared/run --config_path X.yaml ...
#
# The arguments after --dry-run are those of `python -m instructrec_jax.train`. run_dir must be in a bucket, or on a disk
# shared by all nodes. SBATCH_* variables (SBATCH_PARTITION, SBATCH_ACCOUNT ...) are sbatch's own. See docs/pods.md.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

dry_run=false
if [ "${1:-}" = --dry-run ]; then dry_run=true; shift; fi
run_dir=""
for ((i = 1; i <= $#; i++)); do
  if [ "${!i}" = --run_dir ]; then next=$((i + 1)); run_dir=${!next:-}; fi
done
if [ -z "$run_dir" ]; then echo "error: --run_dir is missing: in a bucket, or on a disk that all nodes share." >&2; usage; fi
nodes=${NODES:-1}
gpus=${GPUS:-8}

finished="test -e $(printf %q "$run_dir/report.html")"
case $run_dir in
  *://*) # a bucket
    finished="${PYTHON:-python} -c 'import sys, fsspec; sys.exit(not fsspec.url_to_fs(sys.argv[1])[0].exists(sys.argv[1]))'"
    finished+=" $(printf %q "$run_dir/report.html")"
    ;;
esac

# Each process of a node sees all its GPUs; jax assigns it the one with its local index.
job=$(cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=instructrec
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=${CPUS:-8}
#SBATCH --time=${TIME:-24:00:00}
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
cd $(printf %q "$PWD")
status=0
srun --kill-on-bad-exit=1 ${PYTHON:-python} -m instructrec_jax.train$(printf ' %q' "$@") || status=\$?
# An interrupted run also exits with 0; only a finished one has a report. Exit status 2: an error that a restart repeats.
if $finished || [ \$status -eq 2 ]; then exit \$status; fi
if [ "\${SLURM_RESTART_COUNT:-0}" -lt ${ATTEMPTS:-20} ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit \$status
JOB
)

if $dry_run; then echo "$job"; exit; fi
sbatch <<<"$job"

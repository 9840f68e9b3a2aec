#!/usr/bin/env bash
# Trains on all machines of a TPU VM pod, and restarts until the run is finished.
#
#   TPU=my-pod ZONE=us-east5-a scripts/launch/tpu_pod.sh [--dry-run] --run_dir /mnt/shared/run --config_path X.yaml ...
#
# The arguments after --dry-run are those of `python -m instructrec_jax.train`. Paths are paths on the machines, and
# run_dir must be in a bucket, or on a disk shared by all of them. See docs/pods.md.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

dry_run=false
if [ "${1:-}" = --dry-run ]; then dry_run=true; shift; fi
run_dir=""
for ((i = 1; i <= $#; i++)); do
  if [ "${!i}" = --run_dir ]; then next=$((i + 1)); run_dir=${!next:-}; fi
done
if [ -z "$run_dir" ]; then echo "error: --run_dir is missing: in a bucket, or on a disk that all machines share." >&2; usage; fi
if [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then echo "error: set TPU and ZONE to the pod's name and zone." >&2; usage; fi
attempts=${ATTEMPTS:-20}
pause=${PAUSE:-90} # seconds; remaining processes of an attempt end by themselves after 60
folder=${FOLDER:-instructrec_jax} # folder of this repository in the home folder of the machines

# An interrupted run also exits with 0; only a finished one has a report.
finished="test -e $(printf %q "$run_dir/report.html")"
case $run_dir in
  *://*) # a bucket
    finished="${PYTHON:-python3} -c 'import sys, fsspec; sys.exit(not fsspec.url_to_fs(sys.argv[1])[0].exists(sys.argv[1]))'"
    finished+=" $(printf %q "$run_dir/report.html")"
    ;;
esac
train="cd $(printf %q "$folder") && ${PYTHON:-python3} -m instructrec_jax.train$(printf ' %q' "$@")"
train+=" && $finished"
command=(gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command "$train")

if $dry_run; then printf '%q ' "${command[@]}"; echo; exit; fi
for ((attempt = 1; attempt <= attempts; attempt++)); do
  if "${command[@]}"; then exit 0; fi
  echo "attempt $attempt of $attempts ended before the run was finished; the next one resumes from its last checkpoint" >&2
  sleep "$pause"
done
exit 1

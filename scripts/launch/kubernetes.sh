#!/usr/bin/env bash
# Starts a training run as a Kubernetes Job, one pod per machine, which restarts pods until the run is finished.
#
#   NAME=tuning IMAGE=registry/instructrec PODS=4 RESOURCE=google.com/tpu COUNT=4 CLAIM=shared \
#     scripts/launch/kubernetes.sh [--dry-run] --run_dir /shared/run --config_path X.yaml ...
#
# The arguments after --dry-run are those of `python -m instructrec_jax.train`. The volume claim CLAIM
# (ReadWriteMany) is mounted at /shared; it may be left out where --run_dir is in a bucket. Each pod gets COUNT of RESOURCE
# (nvidia.com/gpu, google.com/tpu); NODES is a JSON object of node labels that pods require. See docs/pods.md.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

dry_run=false
if [ "${1:-}" = --dry-run ]; then dry_run=true; shift; fi
run_dir=""
for ((i = 1; i <= $#; i++)); do
  if [ "${!i}" = --run_dir ]; then next=$((i + 1)); run_dir=${!next:-}; fi
done
finished="test -e $(printf %q "$run_dir/report.html")"
case $run_dir in
  /shared/*) ;;
  s3://* | gs://*)
    finished="python -c 'import sys, fsspec; sys.exit(not fsspec.url_to_fs(sys.argv[1])[0].exists(sys.argv[1]))'"
    finished+=" $(printf %q "$run_dir/report.html")"
    ;;
  *) echo "error: --run_dir is missing, or neither a bucket nor below /shared, where the volume is mounted." >&2; usage ;;
esac
if [ -z "${IMAGE:-}" ]; then echo "error: set IMAGE." >&2; usage; fi
volume="" mount=""
if [ -n "${CLAIM:-}" ]; then
  volume=$'\n'"        - {name: shared, persistentVolumeClaim: {claimName: $CLAIM}}"
  mount=$'\n'"            - {name: shared, mountPath: /shared}"
elif [[ $run_dir == /shared/* ]]; then
  echo "error: set CLAIM, or name a run_dir in a bucket." >&2
  usage
fi
name=${NAME:-instructrec}
pods=${PODS:-1}

# Pod i is named $name-i in the headless service's domain, so the first one has an address before it runs.
# bash waits for the training, so SIGTERM is forwarded. An interrupted run also exits with 0; only a finished one has a
# report. Exit status 2: an error that a restart repeats.
manifest=$(cat <<MANIFEST
apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: $name
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  completionMode: Indexed
  completions: $pods
  parallelism: $pods
  backoffLimit: $((${ATTEMPTS:-20} * pods))
  podFailurePolicy:
    rules:
      - action: FailJob
        onExitCodes: {containerName: train, operator: In, values: [2]}
      - action: Ignore
        onPodConditions: [{type: DisruptionTarget}]
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 300
      nodeSelector: ${NODES:-{\}}
      volumes:$volume
        - name: memory
          emptyDir: {medium: Memory}
      containers:
        - name: train
          image: $IMAGE
          command: [bash, -c]
          args:
            - |
              term=; trap 'term=1; kill -TERM \$! 2>/dev/null' TERM
              python -m instructrec_jax.train "\$@" &
              [ -z "\$term" ] || kill -TERM \$!
              until wait \$!; status=\$?; ! kill -0 \$! 2>/dev/null; do :; done
              if [ \$status -ne 0 ]; then exit \$status; fi
              $finished || exit 75
            - train
$(for argument in "$@"; do printf "            - '%s'\n" "${argument//\'/\'\'}"; done)
          env:
            - {name: COORDINATOR_ADDRESS, value: "$name-0.$name:8476"}
            - {name: NUM_PROCESSES, value: "$pods"}
            - name: PROCESS_ID
              valueFrom:
                fieldRef:
                  fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
          ports:
            - containerPort: 8476
          resources:
            limits: {${RESOURCE:-nvidia.com/gpu}: "${COUNT:-8}"}
          volumeMounts:$mount
            - {name: memory, mountPath: /dev/shm}
MANIFEST
)

if $dry_run; then echo "$manifest"; exit; fi
kubectl apply -f - <<<"$manifest"

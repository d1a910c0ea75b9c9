#!/usr/bin/env bash
# Walk the whole way of a new user, from built wheels in a clean environment: ci/journey.sh
#
# Download a model, check the data, rehearse, train, die and resume, ask, chat in a browser, compare
# on a benchmark, publish, and load what was published with transformers and PEFT. The model is the
# quickstart's small base; the hub is the fake one of the tests, on this machine; the browser is the
# system's Chromium. What it writes stays in the folder that it names first and last.
#
#   PYTHON     the interpreter to begin with               (python3)
#   JOURNEY    the folder to work in, emptied first        (output/journey)
#   JOURNEY_ENV  a virtual environment to take instead of building and installing
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
work=${JOURNEY:-$root/output/journey}
rm -rf "$work" && mkdir -p "$work" && work=$(cd "$work" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PIP_DISABLE_PIP_VERSION_CHECK=1
started=$SECONDS
children=()
trap 'for child in "${children[@]:-}"; do [ -z "$child" ] || kill "$child" 2>/dev/null || true; done' EXIT

step() { printf '\n=== %s  (%d s)\n' "$*" $((SECONDS - started)); }
run() {
    printf '$ %s\n' "$*"
    "$@"
}
fail() {
    printf 'journey: %s\n' "$*" >&2
    exit 1
}

step "wheels, in a clean environment"
if [ -z "${JOURNEY_ENV:-}" ]; then
    "$python" -m venv "$work/build"
    "$work/build/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" build
    for name in core recipes integrations; do
        "$work/build/bin/python" -m build --wheel --outdir "$work/wheels" \
            "$root/packages/torchtune-$name" >/dev/null
    done
    "$python" -m venv "$work/env"
    integrations=$(echo "$work"/wheels/torchtune_integrations-*.whl)
    PIP_CONSTRAINT=$root/constraints.txt "$work/env/bin/python" -m pip install --quiet \
        "$work"/wheels/torchtune_core-*.whl "$work"/wheels/torchtune_recipes-*.whl \
        "$integrations[eval,hub,ui]" transformers peft playwright
    JOURNEY_ENV=$work/env
fi
export PATH=$JOURNEY_ENV/bin:$PATH
cd "$work"

step "a base model on the hub"
python -m torchtune_recipes.quickstart --output-dir quickstart >quickstart.log 2>&1 ||
    fail "the quickstart failed: see $work/quickstart.log"
python "$root/ci/journey/publish_base.py" quickstart hub/demo/capitals-base
export HF_HOME=$work/hf_home HF_HUB_DISABLE_XET=1 HF_HUB_DISABLE_TELEMETRY=1
python "$root/tests/fake_hub/server.py" --root hub --port 0 >hub.url 2>hub.log &
children+=($!)
for _ in $(seq 100); do [ -s hub.url ] || sleep 0.1; done
HF_ENDPOINT=$(head -1 hub.url)
export HF_ENDPOINT

step "download"
run tune download demo/capitals-base
run tune inspect models/capitals-base

step "check the data"
run tune data check quickstart/instructions.jsonl --checkpoint models/capitals-base --rows 2

step "rehearse"
cp quickstart/lora.yaml my_run.yaml
keys=(checkpoint=models/capitals-base dataset=quickstart/instructions.jsonl output_dir=capitals
    save_every_n_steps=50 keep_last_n_checkpoints=2 validation_split=0.05
    'sample_prompts=["What is the capital of Tuvalu?"]')
run tune validate sft my_run.yaml "${keys[@]}"
run tune run sft --config my_run.yaml "${keys[@]}" --rehearse

step "train, and die"
setsid tune run sft --config my_run.yaml "${keys[@]}" 2>first_run.log &
training=$!
for _ in $(seq 1200); do
    [ ! -e capitals/step_000150 ] || break
    kill -0 "$training" 2>/dev/null || fail "the run ended too early: see $work/first_run.log"
    sleep 0.1
done
kill -KILL -- "-$training"
wait "$training" || echo "killed after step $(tail -1 capitals/metrics.jsonl | cut -d, -f1 | cut -d: -f2)"

step "resume"
run tune run sft --config my_run.yaml "${keys[@]}" resume_from_checkpoint=auto
[ "$(wc -l <capitals/metrics.jsonl)" = 400 ] || fail "metrics.jsonl does not hold 400 steps"

step "ask"
answer=$(run tune generate --checkpoint capitals --prompt "What is the capital of Tuvalu?" | tail -1)
echo "$answer"
[ "$(echo $answer)" = Funafuti ] || fail "the tuned model does not know the capital of Tuvalu"
printf 'What is the capital of Tuvalu?\n/quit\n' | run tune chat --checkpoint capitals

step "chat in a browser"
run python "$root/ci/chat_picture.py" --checkpoint capitals --compare models/capitals-base \
    --prompt "What is the capital of Tuvalu?" --out chat.png

step "evaluate against the base"
cp "$root/ci/journey/capitals.yaml" .
run tune evaluate --checkpoint capitals --compare models/capitals-base --include-path . \
    --tasks capitals --output-dir capitals_evaluation

step "publish"
export HF_TOKEN=hf_fakeTokenThatMayWrite # the fake hub's
run tune push_to_hub --checkpoint capitals --repo tester/capitals-lora --dry-run
run tune push_to_hub --checkpoint capitals --repo tester/capitals-lora --yes

step "load what was published"
run tune download tester/capitals-lora
run python "$root/ci/journey/load_published.py" models/capitals-lora models/capitals-base
! grep -rqF "$HF_TOKEN" --exclude-dir=env --exclude-dir=build . || fail "the token was written down"

printf '\nall well in %d s: look at %s and %s\n' $((SECONDS - started)) "$work/chat.png" "$work/capitals/loss.png"

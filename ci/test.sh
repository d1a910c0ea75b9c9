#!/usr/bin/env bash
# Test a package, or one extra alone, as its users get it:
#
#   ci/test.sh core|recipes|integrations [pytest arguments]
#   ci/test.sh eval|gguf|hub|mlflow|tensorboard|ui|wandb [pytest arguments]
#
# Builds the wheels, installs them into a clean virtual environment with nothing but what they
# declare, and pytest; runs the tests from outside the source tree. `integrations` has all of its
# extras, an extra's name that one and no other; both have the recipes too, which need core alone.
# Test files that compare with transformers, PEFT, tiktoken or torchao come second, after these
# references (and playwright, for the chat page) have been installed too.
#
#   PYTHON     the interpreter to test with                              (python3)
#   CORE_REF   build core from this git tag or commit                    (the present tree)
#   KEEP       keep the environment and the wheels in this folder        (a temporary one, removed)
set -euo pipefail

name=${1:?usage: ci/test.sh core|recipes|integrations|EXTRA [pytest arguments]}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
work=${KEEP:-$(mktemp -d)}
[ -n "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work/wheels" && rm -f "$work/wheels"/*.whl
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

all_extras=eval,gguf,hub,mlflow,tensorboard,ui,wandb
package=integrations
case $name in
core) package=core extras="" tests=core ;;
recipes) package=recipes extras="" tests=recipes ;;
integrations) extras=$all_extras tests=integrations ;;
eval) extras=eval tests=integrations/lm_eval ;;
gguf) extras=gguf tests=integrations/test_gguf_export.py ;;
hub) extras=hub tests=integrations/hub ;;
mlflow) extras=mlflow tests=integrations/test_mlflow_logger.py ;;
tensorboard) extras=tensorboard tests=integrations/test_tensorboard_logger.py ;;
ui) extras=ui tests=integrations/test_chat_page.py ;;
wandb) extras=wandb tests=integrations/test_wandb_logger.py ;;
*)
    echo "ci/test.sh: no package '$name'; there are core, recipes and integrations," >&2
    echo "  and the extras of the last: $all_extras" >&2
    exit 2
    ;;
esac
needs=(core)
[ "$package" = core ] || needs+=(recipes)
[ "$package" != integrations ] || needs+=(integrations)

# The tree that core is built from: a released one to test against the lowest version allowed.
core_tree=$root
if [ -n "${CORE_REF:-}" ]; then
    core_tree=$work/core_tree
    mkdir -p "$core_tree"
    git -C "$root" archive "$CORE_REF" packages/torchtune-core | tar -x -C "$core_tree"
fi

echo "== build: ${needs[*]}"
"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" build
for need in "${needs[@]}"; do
    tree=$root
    [ "$need" != core ] || tree=$core_tree
    "$work/build/bin/python" -m build --wheel --outdir "$work/wheels" \
        "$tree/packages/torchtune-$need" >/dev/null
done

echo "== install into a clean environment: torchtune-$package${extras:+[$extras]}"
"$python" -m venv "$work/env"
wheels=("$work"/wheels/torchtune_core-*.whl)
[ "$package" = core ] || wheels+=("$(echo "$work/wheels/torchtune_$package"-*.whl)${extras:+[$extras]}")
PIP_CONSTRAINT=$root/constraints.txt "$work/env/bin/python" -m pip install --quiet "${wheels[@]}"
"$work/env/bin/python" -m pip check
if [ "$package" = integrations ]; then
    "$work/env/bin/python" -m pip install --quiet --no-deps "$work"/wheels/torchtune_recipes-*.whl
fi
PIP_CONSTRAINT=$root/constraints.txt "$work/env/bin/python" -m pip install --quiet \
    pytest pytest-xdist hatchling jsonschema

echo "== test"
rm -rf "$work"/{tests,docs,ci} && mkdir "$work"/{tests,docs,ci}
cp -r "$root"/docs/{kubernetes,slurm,recipes.md} "$work/docs/" # what the recipes' tests run of them
cp "$root/ci/killed_runs.py" "$work/ci/"
cp "$root/pytest.ini" "$work/"
cp -r "$root"/tests/{*.py,fake_hub,example_plugin} "$root/tests/$package" "$work/tests/"
cd "$work"
export TUNE_TEST_SHARED=${TUNE_TEST_SHARED:-$root/../shared}
references='^ *(import|from) (transformers|peft|tiktoken|torchao)|importorskip.*(transformers|peft|tiktoken|torchao|random_models)'
mapfile -t comparing < <(grep -rlE --include='test_*.py' "$references" "tests/$tests" | sort)
[ "${comparing[*]:-}" = "tests/$tests" ] || # a single file, which comes second
    env/bin/python -m pytest "tests/$tests" "${comparing[@]/#/--ignore=}" "$@"

[ "${#comparing[@]}" -gt 0 ] || exit 0
echo "== test what compares with references"
PIP_CONSTRAINT=$root/constraints.txt env/bin/python -m pip install --quiet \
    transformers peft tiktoken torchao playwright
env/bin/python -m pytest "${comparing[@]}" "$@"

#!/usr/bin/env bash
# Test one package as its users get it: ci/test.sh core|recipes|integrations [pytest arguments]
#
# Builds the package's wheel, and core's where the package needs it; installs them into a clean
# virtual environment with nothing but what they declare, and pytest; runs the package's tests
# from outside the source tree. Test files that compare with transformers, PEFT or tiktoken come
# second, after these references have been installed too.
#
#   PYTHON     the interpreter to test with                              (python3)
#   CORE_REF   build core from this git tag or commit                    (the present tree)
#   KEEP       keep the environment and the wheels in this folder        (a temporary one, removed)
set -euo pipefail

package=${1:?usage: ci/test.sh core|recipes|integrations [pytest arguments]}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
work=${KEEP:-$(mktemp -d)}
[ -n "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work/wheels" && rm -f "$work/wheels"/*.whl
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

case $package in
core) needs=(core) extra="" ;;
recipes) needs=(core recipes) extra="" ;;
integrations) needs=(core integrations) extra="[tensorboard,wandb]" ;;
*)
    echo "ci/test.sh: no package '$package'; there are core, recipes and integrations" >&2
    exit 2
    ;;
esac

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
for name in "${needs[@]}"; do
    tree=$root
    [ "$name" != core ] || tree=$core_tree
    "$work/build/bin/python" -m build --wheel --outdir "$work/wheels" \
        "$tree/packages/torchtune-$name" >/dev/null
done

echo "== install into a clean environment"
"$python" -m venv "$work/env"
wheels=("$work"/wheels/torchtune_core-*.whl)
[ "$package" = core ] || wheels+=("$(echo "$work/wheels/torchtune_$package"-*.whl)$extra")
PIP_CONSTRAINT=$root/constraints.txt "$work/env/bin/python" -m pip install --quiet \
    "${wheels[@]}" pytest
"$work/env/bin/python" -m pip check

echo "== test"
mkdir -p "$work/tests"
cp "$root/pytest.ini" "$work/"
cp -r "$root/tests/conftest.py" "$root/tests/$package" "$work/tests/"
cd "$work"
export TUNE_TEST_SHARED=${TUNE_TEST_SHARED:-$root/../shared}
references='^ *(import|from) (transformers|peft|tiktoken)|importorskip.*(transformers|peft|tiktoken|random_models)'
mapfile -t comparing < <(grep -rlE --include='test_*.py' "$references" "tests/$package" | sort)
env/bin/python -m pytest "tests/$package" "${comparing[@]/#/--ignore=}" "$@"

[ "${#comparing[@]}" -gt 0 ] || exit 0
echo "== test what compares with references"
PIP_CONSTRAINT=$root/constraints.txt env/bin/python -m pip install --quiet \
    transformers peft tiktoken
env/bin/python -m pytest "${comparing[@]}" "$@"

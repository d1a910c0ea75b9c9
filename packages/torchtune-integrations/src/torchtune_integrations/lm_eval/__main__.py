"""One of the processes of ``tune evaluate --nproc-per-node N``."""

import argparse
import json
import sys

from torchtune.errors import report_errors

from torchtune_integrations.lm_eval.command import run

if __name__ == "__main__":
    with report_errors():
        code = run(argparse.Namespace(**json.loads(sys.argv[1])))
    sys.exit(code)

"""A worker process: ``python -m avmm.testing.campaign.worker`` takes requests as JSON lines and answers each with one.

Standard output is for answers only; whatever a scenario prints past pytest goes to standard error. The process ends with its
standard input, so a campaign that is killed leaves none behind. The invariant: one answer for each request, in order.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from avmm.control.config import ConfigError
from avmm.testing.campaign.instance import collect, run
from avmm.testing.campaign.matrix import Instance


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked for."""
    try:
        if "collect" in request:
            return {"tests": [asdict(test) for test in collect(request["collect"])]}
        return run(Instance.from_dict(request["run"]), request.get("artefacts"))
    except ConfigError as error:
        return {"wrong": str(error)}


def main() -> None:
    """Answer until there is nothing more to read."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.path.insert(0, os.getcwd())  # as `python -m pytest` does
    with requests, answers:
        for line in requests:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()

"""Serve one engine: `python -m outpace_peer ENGINE`, JSON requests on standard input, one answer per line.

{"do": "versions"}                               -> {"ok": {package: version}}
{"do": "convert", "source", "target", "precision"} -> {"ok": null}
{"do": "open", ...fields of Job}                 -> {"ok": {"libraries": bytes held before the model was loaded}}
{"do": "run", ...fields of Request}                 -> {"ok": a generation, see `base.finish`}
{"do": "translate", "sources", "max_tokens", "beams"} -> {"ok": {"tokens", "seconds"}}, of CTranslate2 alone
{"do": "memory"}                                 -> {"ok": the most bytes this process ever held}

A request that fails is answered by {"error": sentence}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from .base import Engine, Failure, Job, Request


def _engine(name: str) -> Engine:
    if name == "llama.cpp":
        from .llama_cpp import LlamaCpp

        return LlamaCpp()
    if name == "ctranslate2":
        from .ctranslate2 import CTranslate2

        return CTranslate2()
    from .openvino import OpenVino

    return OpenVino()


def _answer(engine: Any, request: dict[str, Any]) -> Any:
    what = request.pop("do")
    if what == "versions":
        return engine.versions()
    if what == "convert":
        return engine.convert(request["source"], request["target"], request["precision"])
    if what == "open":
        engine.versions()
        held = _peak()
        engine.open(Job(**request))
        return {"libraries": held}
    if what == "translate":
        return engine.translate(**request)
    if what == "run":
        return engine.run(Request(**request))
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def _main() -> None:
    # Libraries print where they like; only answers may go to the parent.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine = _engine(sys.argv[1])
    for line in sys.stdin:
        try:
            answer = {"ok": _answer(engine, json.loads(line))}
        except Failure as error:
            answer = {"error": str(error)}
        except Exception as error:  # whatever an engine raises, the parent gets a sentence
            text = (str(error).strip().splitlines() or ["no reason given"])[0]
            answer = {"error": f"{type(error).__name__}: {text}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()

"""One fine-tuning of an experiment, in a process of its own, which ends when its standard input does.

python -m rsprune.experiment.tune REQUEST.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rsprune.experiment.config import DOWNSTREAM
from rsprune.experiment.work import end_with_parent
from rsprune.files import write_json


def main(path: str) -> None:
    """Fine-tunes, or goes on, and measures; the result is the last file that is written."""
    import torch

    from rsprune.finetuning.finetune import finetune
    from rsprune.training import checkpoint
    from rsprune.training.config import checked

    end_with_parent()
    request = json.loads(Path(path).read_text("utf-8"))
    folder, device = Path(path).parent, request["device"]
    if device == "cpu":
        torch.set_num_threads(1)
    facts = finetune(
        checked(DOWNSTREAM[request["task"]], request["settings"]), request["training"], folder / "model",
        device=device, say=lambda s: print(s, flush=True),
    )  # fmt: skip
    write_json(folder / "result.json", facts)
    for old in checkpoint.everything(folder / "model"):
        checkpoint.remove(old)


if __name__ == "__main__":
    main(sys.argv[1])

"""Train in this process, briefly and longer, and tell what each left open: resource_counts.py RUNS SETTING ..."""

import gc
import json
import sys
import threading
from pathlib import Path

from simfle.config.schema import PretrainConfig, load
from simfle.train.pretrain import pretrain

STEPS = (4, 4, 24)  # the first opens what stays open for good

for number, steps in enumerate(STEPS):
    settings = [*sys.argv[2:], f"train.run_dir={sys.argv[1]}/{number}", f"train.steps={steps}"]
    pretrain(load(PretrainConfig, None, settings))
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    open_ones = {
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "tasks": len(list(Path("/proc/self/task").iterdir())),
        "shared": sum("/dev/shm" in line for line in maps),
    }
    sys.stdout.write(f"open: {json.dumps(open_ones)}\n")

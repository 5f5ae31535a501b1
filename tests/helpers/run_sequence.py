"""Start pretraining runs one after the other, with changes of their folders in between: run_sequence.py FACES OUT JSON.

JSON is a list of ["run", NAME, SETTINGS, ...], ["copy", FROM, TO], ["remove", PATH]; names and paths are below OUT.
Each run is a fork of this process, see train_methods.py. Its output and its error are written to OUT/NUMBER.txt, with
the number of the entry in the list.
"""

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

from helpers.train_methods import SETTINGS
from simfle.config.schema import PretrainConfig, load
from simfle.errors import RunStopped, UserError
from simfle.train.pretrain import pretrain


def work(settings: list[str], log: Path) -> None:
    file = log.open("w")
    os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        pretrain(load(PretrainConfig, None, settings))
    except (UserError, RunStopped) as error:
        print(error, file=sys.stderr, flush=True)


def main() -> None:
    faces, out = sys.argv[1], Path(sys.argv[2])
    for number, (what, name, *rest) in enumerate(json.loads(sys.argv[3])):
        if what == "copy":
            shutil.copytree(out / name, out / rest[0])
        elif what == "remove":
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
        else:
            places = [f"data.shards=[{faces}]", f"train.run_dir={out / name}"]
            settings = [*SETTINGS, *places, *(word.replace("OUT", str(out)) for word in rest)]
            child = multiprocessing.get_context("fork").Process(target=work, args=(settings, out / f"{number}.txt"))
            child.start()
            child.join()
            if child.exitcode != 0:
                sys.exit(f"{number}: {name} ended with {child.exitcode}")


if __name__ == "__main__":
    main()

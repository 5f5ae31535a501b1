"""The runs whose scaling is measured. The measurement itself: tests/cluster/test_slurm_page.py."""

from pathlib import Path

from simfle.bench.scaling import run_settings
from simfle.config.schema import PretrainConfig, load


def test_decoding_is_limited_where_it_takes_cores_from_arithmetic() -> None:
    for on_gpu, threads in ((True, 0), (False, 1)):
        config = load(PretrainConfig, None, run_settings(Path("runs/a b"), 8, 5, on_gpu=on_gpu))
        assert config.data.decode_threads == threads
        assert (config.train.run_dir, config.train.steps, config.train.global_batch) == ("runs/a b", 5, 8)

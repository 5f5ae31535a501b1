"""Partners of frames: within the clip and the window, uniform, pure; and the loader's view 2 of them."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data_fixtures import jpeg, picture, write_shards

from shards.format.index import index_tar, write_index
from shards.format.manifest import read_manifest, write_manifest
from simfle.config.schema import DataConfig, ViewsConfig
from simfle.config.validate import validate
from simfle.data.backends.opencv import OpenCV
from simfle.data.clip_pairs import ClipPairs, ClipTable, check_pair, read_clips
from simfle.data.dataset import ShardCorpus, open_corpus
from simfle.data.loader import Loader, RankSlice
from simfle.data.philox import PARTNER, key, philox
from simfle.data.training_data import OrderedShards, make_sampler
from simfle.data.views import sample_view_params
from simfle.errors import UserError

VIEWS = ViewsConfig(size=32, face_size=16)
# 30 samples in two shards: clips a and b of one person (ids in turns), a clip of another person with the same name, one
# clip of a single frame, and samples without a clip.
CLIPS = [("p1", "a", frame) for frame in range(8)] + [("p1", "b", frame) for frame in range(8)]
CLIPS += [("p2", "a", frame) for frame in range(6)] + [("p3", "c", 0)] + [None] * 7
ORDER = np.random.default_rng(0).permutation(30)  # a build spreads a clip over all shards


def write_clips(folder: Path, *, broken: int | None = None) -> Path:
    """Shards whose samples know their clip; the picture of sample `broken` cannot be decoded."""
    images = [jpeg(picture(number, 40, 40)) if number != broken else b"\xff\xd8 no jpeg" for number in range(30)]
    write_shards(folder, [("train", images[:14]), ("train", images[14:])])
    infos = []
    for info in read_manifest(folder).shards:
        path = folder / info.file
        with tarfile.open(path) as tar:
            members = [(item.name, tar.extractfile(item).read()) for item in tar]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in members:
                clip = CLIPS[ORDER[int(name[1:7])]]
                if name.endswith(".json") and clip is not None:
                    extras = {"sequence": clip[1], "frame": clip[2], "frames": 8}
                    written = json.dumps({"key": name, "group": clip[0], "extras": extras}).encode()
                else:
                    written = content
                member = tarfile.TarInfo(name)
                member.size = len(written)
                tar.addfile(member, io.BytesIO(written))
        write_index(path.with_suffix(".idx"), index_tar(path))
        infos.append(replace(info, bytes=path.stat().st_size))
    write_manifest(folder, replace(read_manifest(folder), shards=tuple(infos)))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ShardCorpus:
    return open_corpus(DataConfig(shards=[str(write_clips(tmp_path_factory.mktemp("clips") / "shards"))]))


def clip_of(number: int) -> tuple[str, str, int] | None:
    return CLIPS[ORDER[number]]


def test_the_table_has_the_samples_that_know_their_clip(corpus: ShardCorpus) -> None:
    table = read_clips(corpus)
    assert sorted(table.ids.tolist()) == [number for number in range(30) if clip_of(number) is not None]
    rows = [clip_of(number) for number in table.ids.tolist()]
    assert rows == sorted(rows)
    assert table.frames.tolist() == [frame for _, _, frame in rows]
    assert table.clips.tolist() == [0] * 8 + [1] * 8 + [2] * 6 + [3]


@pytest.mark.parametrize("window", [0, 1, 3, 2.5])
def test_partners_are_other_frames_of_the_clip_within_the_window(corpus: ShardCorpus, window: float) -> None:
    table, seen = read_clips(corpus), Counter()
    for epoch in range(200):
        partners = table.partners(7, epoch, np.arange(30), window)
        for number, partner in enumerate(partners.tolist()):
            seen[number, partner] += 1
    for number in range(30):
        mine = clip_of(number)
        allowed = {
            other
            for other in range(30)
            if mine is not None
            and clip_of(other) is not None
            and clip_of(other)[:2] == mine[:2]
            and other != number
            and (not window or abs(clip_of(other)[2] - mine[2]) <= window)
        }
        found = {partner for (of, partner), _ in seen.items() if of == number}
        assert found == (allowed or {number})
        share = 200 / max(1, len(allowed))
        for partner in allowed:
            assert abs(seen[number, partner] - share) < 5 * (share + 1) ** 0.5


def test_partners_are_a_pure_function_of_seed_epoch_and_id(corpus: ShardCorpus) -> None:
    table, ids = read_clips(corpus), np.arange(30)
    whole = table.partners(3, 5, ids)
    shuffled = np.random.default_rng(1).permutation(30)
    assert np.array_equal(table.partners(3, 5, shuffled), whole[shuffled])
    assert [int(table.partners(3, 5, [number])[0]) for number in ids] == whole.tolist()
    assert not np.array_equal(table.partners(4, 5, ids), whole)
    assert not np.array_equal(table.partners(3, 6, ids), whole)


def test_a_partner_is_chosen_by_one_philox_word() -> None:
    """Multiply and shift, independent of the implementation: the chosen frame among the others, in order of frames."""
    big = 2**33 + 5
    table = ClipTable(np.array([big, 9, 4, 7, 2]), np.zeros(5, np.int64), np.array([0.0, 1, 2, 3, 9]))
    for epoch in range(20):
        for number, others in ((big, [9, 4, 7, 2]), (4, [big, 9, 7, 2])):
            counter = np.array([[number % 2**32, number >> 32, epoch, 0]], dtype=np.uint32)
            word = int(philox(counter, key(11, PARTNER))[0, 0])
            assert table.partners(11, epoch, [number])[0] == others[word * 4 >> 32]


def make_loader(data: DataConfig, images: tuple[str, ...] = ("view1", "view2", "face"), **share: int) -> Loader:
    corpus = open_corpus(data)
    sampler = make_sampler(corpus, data, 5, 8)
    return Loader(OrderedShards(corpus, sampler), VIEWS, data, RankSlice(**share), torch.device("cpu"), images)


@pytest.fixture
def data(corpus: ShardCorpus) -> DataConfig:
    return DataConfig(shards=[str(corpus.folders[0])], backend="opencv", decode_threads=1, canonical_streams=4)


@pytest.mark.parametrize("backend", ["opencv", "dali"])
def test_the_loader_takes_view_2_from_the_partner_and_nothing_else_changes(
    backend: str, data: DataConfig, corpus: ShardCorpus
) -> None:
    data = replace(data, backend=backend)
    plain, paired = make_loader(data), make_loader(replace(data, pair="clip", pair_window=3))
    only = make_loader(data)._backend
    table = read_clips(corpus)
    for step in range(6):
        ours, theirs = paired.batch(step, 0), plain.batch(step, 0)
        for name in ("view1", "face", "ids", "mask_uniform"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        ids = ours.ids.numpy()
        epoch = plain.source.slot_ids(step, 0, 8)[1]
        partners = table.partners(5, epoch, ids, 3)
        images = [corpus.read_image(*map(int, place)) for place in zip(*corpus.locate(partners), strict=True)]
        wanted = only.render(images, sample_view_params(5, epoch, ids, VIEWS)).view2  # view 2's draws of the sample
        assert torch.equal(ours.view2, wanted)
        moved = (ours.view2 != theirs.view2).flatten(1).any(dim=1).numpy()
        assert np.array_equal(moved, partners != ids)
    only.close()
    for each in (plain, paired):
        each.close()


def test_pairs_do_not_depend_on_the_number_of_processes(data: DataConfig) -> None:
    data = replace(data, pair="clip")
    one = make_loader(data)
    two = [make_loader(data, rank=rank, world_size=2, grad_accum_steps=2) for rank in range(2)]
    whole = one.batch(3, 0)
    parts = [loader.batch(3, micro) for loader in two for micro in range(2)]
    for name in ("view1", "view2", "ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for each in (one, *two):
        each.close()


def test_a_method_without_view_2_reads_no_clips(data: DataConfig) -> None:
    loader = make_loader(replace(data, pair="clip"), ("view1",))
    assert loader.batch(0, 0).view2.shape == (8, 3, 0, 0)
    loader.close()


def test_an_undecodable_partner_is_replaced_by_the_sample_itself(tmp_path: Path) -> None:
    broken = int(np.flatnonzero(ORDER == 3)[0])  # frame 3 of clip a of p1
    data = DataConfig(shards=[str(write_clips(tmp_path / "shards", broken=broken))], pair="clip", pair_window=1)
    corpus = open_corpus(data)
    backend, whole = OpenCV(VIEWS, 1, images=("view2",)), OpenCV(VIEWS, 1)
    pairs = ClipPairs(corpus, data, 5, backend)
    number = int(np.flatnonzero(ORDER == 2)[0])
    epoch = next(epoch for epoch in range(50) if pairs.table.partners(5, epoch, [number], 1)[0] == broken)
    draws = sample_view_params(5, epoch, [number], VIEWS)
    found = pairs.view2(epoch, np.array([number]), draws)
    image = corpus.read_image(*(int(place[0]) for place in corpus.locate([number])))
    assert torch.equal(found, whole.render([image], draws).view2)
    for each in (pairs, whole):
        each.close()


def test_shards_without_clips_are_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "plain", [("train", [jpeg(picture(1, 32, 32))] * 3)])
    with pytest.raises(UserError, match=r"data\.pair=clip: no two samples of these shards"):
        read_clips(open_corpus(DataConfig(shards=[str(shards)])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pair": "video"}, "pair='video': must be image or clip"),
        ({"pair": "clip", "pair_window": -1.0}, "pair_window=-1.0: must be at least 0"),
        ({"pair": "clip", "resampled": True}, "data.pair=clip: not possible with data.resampled=true"),
    ],
)
def test_pairs_that_cannot_be_made_are_refused(changes: dict, message: str) -> None:
    config = DataConfig(**changes)
    with pytest.raises(UserError, match=message):
        check_pair(config) if config.resampled else validate(config)
    with pytest.raises(UserError, match=r"data\.pair=clip: not possible with shards from URLs"):
        check_pair(DataConfig(pair="clip"), remote=True)
